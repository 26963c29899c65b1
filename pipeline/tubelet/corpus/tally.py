"""What an index job found, and when that shows that the fault is not in the videos."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet.config import UserError
from tubelet.error_rate import ErrorRate
from tubelet.video import TRANSIENT, ErrorCode, Status, to_retry

# If all of the first so many objects are denied, so will be the others.
_DENIED = 20
# If none of so many objects can be read, the fault is the store's or ours: end the job, not ten hours later.
_ENOUGH = 200
# Failures that say that an object was not read at all.
_UNREADABLE = frozenset(
    {
        ErrorCode.NOT_FOUND,
        ErrorCode.DENIED,
        ErrorCode.CHANGED,
        ErrorCode.IO_ERROR,
        ErrorCode.INTERNAL_ERROR,
    }
)


class IndexTally:
    """Counts rows as they become final, and watches those that were opened for outages.

    Args:
        src: the corpus, for messages.
        max_error_rate: the share of the last thousand opened objects that may fail for the store's or the
            machine's doing. A verdict on a file is what a manifest is for and counts in no rate.

    Attributes:
        ok, errors, not_video: rows by status.
        to_retry: errors that the next update tries again.
        probed: objects that were opened; ``failed``: those of them that ended in an error.
        segments: labelled parts of videos.
        left_out: clips that a correction without a label keeps out of training.
        labelled: videos, usable or not, that have a label in some head.
        by_split: these by split.
        reasons: errors by code.
    """

    def __init__(self, src: str, max_error_rate: float) -> None:
        self.ok = self.errors = self.not_video = self.to_retry = self.probed = self.labelled = 0
        self.segments = self.left_out = self.failed = 0
        self.by_split: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._src = src
        self._rate = ErrorRate(
            max_error_rate,
            "No manifest was written: see to the store or the machine, then go on with the same command",
        )
        self._seen = self._denied = self._unreadable = 0
        self._failure = ""

    def watch(self, row: dict[str, Any]) -> None:
        """An object was opened.

        Raises:
            UserError: the first objects could not be read, or too many of the last thousand failed in a way
                that is not the files' doing.
        """
        code = row["error_code"]
        self.probed += 1
        if row["status"] == Status.NOT_VIDEO:
            return
        self.failed += row["status"] == Status.ERROR
        self._seen += 1
        self._denied += code == ErrorCode.DENIED
        if code in _UNREADABLE:
            self._unreadable += 1
            self._failure = self._failure or f"{code}: {row['error']}"
        if self._denied == self._seen == _DENIED:
            raise UserError(
                f"the objects under {self._src} can be listed, but not read: {row['error']}\n"
                "give the credentials the right to read (s3:GetObject)"
            )
        if self._seen == _ENOUGH:
            self.check_readable()
        self._rate.see(code if code in TRANSIENT else None, row["error"])

    def check_readable(self) -> None:
        """After the first pass over the objects.

        Raises:
            UserError: nothing at all could be read, so the fault is not in the videos.
        """
        if self._seen > 1 and self._unreadable == self._seen:
            raise UserError(
                f"none of the first {self._seen} objects could be read: {self._failure}\n"
                "this is not the videos' fault: check the network and the right to read, then run this again"
            )

    def count(self, row: dict[str, Any], parts: list[dict[str, Any]], heads: list[str]) -> None:
        """An object is final for this run; ``parts`` are its rows."""
        status, code = row["status"], row["error_code"]
        if status == Status.NOT_VIDEO:
            self.not_video += 1
            return
        live = [part for part in parts if part["status"] != Status.GONE]
        self.labelled += any(part[head] for part in live for head in heads)
        self.segments += sum(bool(part["segment"]) for part in live)
        self.left_out += sum(
            part["corrected_at"] is not None and not any(part[head] for head in heads) for part in live
        )
        if row["split"] is not None:
            self.by_split[row["split"]] += 1
        if status == Status.OK:
            self.ok += 1
            return
        self.errors += 1
        self.reasons[code] += 1
        self.to_retry += to_retry(code, row["attempts"])

    def count_table(self, rows: pa.Table, heads: list[str]) -> None:
        """Objects that are final for this run and have one row each."""
        videos = rows.filter(pc.not_equal(rows["status"], str(Status.NOT_VIDEO)))
        self.not_video += len(rows) - len(videos)
        labelled = pa.repeat(pa.scalar(False), len(videos))
        for head in heads:
            labelled = pc.or_(labelled, has_label(videos[head]))
        self.labelled += _true(labelled)
        self.left_out += _true(pc.and_(pc.is_valid(videos["corrected_at"]), pc.invert(labelled)))
        self.by_split.update(_counts(pc.drop_null(videos["split"])))
        errors = videos.filter(pc.equal(videos["status"], str(Status.ERROR))).select(
            ["error_code", "attempts"]
        )
        self.ok += len(videos) - len(errors)
        self.errors += len(errors)
        self.reasons.update(_counts(errors["error_code"]))
        self.to_retry += sum(
            to_retry(code, tried) for code, tried in zip(*errors.to_pydict().values(), strict=True)
        )

    def judge(self, failed: Counter[str], examples: dict[str, str]) -> None:
        """All is done: ``failed`` counts, by code, the objects opened in this run that failed in passing.

        Raises:
            UserError: a job of less than a thousand objects had too many of them.
        """
        self._rate.judge(self._seen, failed, examples)


def has_label(column: Any) -> Any:
    """Whether each cell of a label column holds a label."""
    if pa.types.is_list(column.type):
        return pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0)
    return pc.fill_null(pc.not_equal(column, ""), False)


def _true(column: Any) -> int:
    return int(pc.sum(column).as_py() or 0)


def _counts(column: Any) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()}

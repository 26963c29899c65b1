"""What the page says of an output, and the rows that it shows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.sink import part_name, part_numbers
from tubelet.storage import StorageOptions
from tubelet.video import Status

MAX_ERRORS = 5000
Place = tuple[str, int]
HEAVY = ("embedding", "scores", "logits")


class Survey:
    """What the page says of an output, gathered part by part: no part stays in memory.

    Attributes:
        good, failed: rows so far.
        shown: the rows to show: those wanted, else any. Keys are hashes: the first of them in order are a
            random sample, the same one each time.
        errors: the failed rows to list.
        labels: labels seen.
        score_sum, scores, unsure: of the confidences.
        origin: model and sampling.
    """

    def __init__(self, limit: int, wanted: Collection[Place] | None = None) -> None:
        self._limit = limit
        self._wanted = wanted
        self.good = self.failed = self.scores = self.unsure = 0
        self.score_sum = 0.0
        self.labels: set[str] = set()
        self.shown: pa.Table | None = None
        self.errors: list[dict[str, Any]] = []
        self.origin: list[str] = []

    def add(self, rows: pa.Table) -> None:
        """Count the rows of one part."""
        if rows.num_rows and not self.origin:
            self.origin = [str(rows[name][0].as_py()) for name in ("model", "sampling")]
        is_error = pc.equal(rows["status"], Status.ERROR.value)
        failed, good = rows.filter(is_error), rows.filter(pc.invert(is_error))
        self.failed += failed.num_rows
        self.good += good.num_rows
        self.errors += failed.slice(0, MAX_ERRORS - len(self.errors)).to_pylist()
        self.labels |= set(pc.unique(good["label"]).to_pylist())
        scores = good["score"].drop_null().to_numpy()
        scores = scores[np.isfinite(scores)]
        self.score_sum += float(scores.sum(dtype=np.float64))
        self.scores += len(scores)
        self.unsure += int((scores < 0.5).sum())
        if self._wanted is not None:
            places = zip(good["key"].to_pylist(), good["window"].to_pylist(), strict=True)
            good = good.filter(pa.array([place in self._wanted for place in places], pa.bool_()))
        kept = good if self.shown is None else pa.concat_tables([self.shown, good])
        order = pc.sort_indices(kept, sort_keys=[("key", "ascending"), ("window", "ascending")])
        # Taken, and not cut out of a sorted copy: a slice would hold all of it.
        self.shown = kept.take(order[: self._limit]).combine_chunks()

    @property
    def tiles(self) -> list[tuple[str, str]]:
        """The figures at the head of the page, of all rows."""
        rows = self.good + self.failed
        return [
            ("Rows", f"{rows:,}"),
            ("Labelled", f"{self.good:,}"),
            ("Errors", f"{self.failed:,} ({100 * self.failed / max(rows, 1):.1f} %)"),
            ("Labels seen", str(len(self.labels))),
            ("Mean confidence", f"{100 * self.score_sum / self.scores:.1f} %" if self.scores else "none"),
            ("Below 50 %", f"{self.unsure:,}"),
        ]


def read_predictions(uri: str, options: StorageOptions) -> Iterator[pa.Table]:
    """The parts at the root of an output, without the columns that are large.

    Raises:
        UserError: there are none.
    """
    files = OutputFiles(uri, options)
    names = [part_name(number) for number in part_numbers(files.names())]
    if not names:
        raise UserError(f"no predictions at {files.uri}: give the --out of `tubelet label`")
    schema = files.read_schema(names[0])
    columns = [name for name in schema.names if not name.startswith(HEAVY)]
    for name in names:
        yield files.read_table(name, columns)

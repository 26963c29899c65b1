"""A queue of records on disk and in memory, sent by a thread that waits out a server's absence.

Each record is a JSON object; it is appended to ``journal.jsonl`` before it is queued, and the journal is
emptied whenever all of it has been sent. Sending a record twice must do no harm. What the server refuses for
good is kept in ``refused.jsonl``, for the next process of the run to try, or for people.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tubelet.redaction import redacted

Record = dict[str, Any]

logger = logging.getLogger(__name__)

JOURNAL, REFUSED = "journal.jsonl", "refused.jsonl"

MAX_RECORDS = 200_000  # a bound on memory (about 100 MB) when a server stays away for days
MAX_BATCH = 200
MAX_SCAN = 1000  # records looked through for metrics that can travel together
MAX_TRIES = 12  # of a record that the server refuses although it answers; then the record is set aside
BACKOFF_S = (0.5, 15.0)


class RefusedError(Exception):
    """The server answered, and will never take this record."""


class Spool:
    """Sends records in order through ``send``, which raises until they have arrived.

    ``healthy`` tells whether the server answers at all: only then do failures count against a record.
    """

    def __init__(
        self, folder: Path, send: Callable[[Sequence[Record]], None], healthy: Callable[[], bool]
    ) -> None:
        self.folder, self._send, self._healthy = folder, send, healthy
        folder.mkdir(parents=True, exist_ok=True)
        self.refused = 0
        self._records: deque[Record] = deque(read_journal(folder))
        self._journal = (folder / JOURNAL).open("a", encoding="utf-8")
        self._changed = threading.Condition()
        self._closing = False
        self._warned = False
        self._alone = 0  # so many records at the head travel alone: a batch with one of them was refused
        self._thread = threading.Thread(target=self._run, name="mlflow-spool", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record; returns at once."""
        with self._changed:
            if self._closing:
                return
            if len(self._records) >= MAX_RECORDS:  # the newest: what was promised first is sent first
                self._set_aside([record], "more records wait than memory may hold")
                return
            with suppress(OSError):  # a full disk: memory alone must do
                self._journal.write(json.dumps(record) + "\n")
                self._journal.flush()
            self._records.append(record)
            self._changed.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until everything was sent; False after ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._records, timeout_s)

    def close(self) -> None:
        """Stop the thread; what was not sent stays in the journal."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._journal.close()

    def _run(self) -> None:
        pause_s, tries = BACKOFF_S[0], 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records or self._closing)
                if self._closing:
                    return
                batch = [self._records[0]] if self._alone else _next_batch(self._records)
            try:
                self._send(batch)
            except RefusedError as error:
                if len(batch) > 1:  # it may be one of them only
                    self._alone = len(batch)
                    continue
                self._set_aside(batch, first_line(error))
            except Exception as error:
                tries += self._healthy()
                if tries >= MAX_TRIES:
                    self._set_aside(batch, first_line(error))
                else:
                    self._warn_once(error)
                    self._pause(pause_s)
                    pause_s = min(pause_s * 2, BACKOFF_S[1])
                    continue
            self._alone = max(0, self._alone - 1)
            self._done(batch)
            pause_s, tries = BACKOFF_S[0], 0

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def _done(self, batch: Sequence[Record]) -> None:
        with self._changed:
            sent = {id(record) for record in batch}
            kept: list[Record] = []
            while sent:
                record = self._records.popleft()
                if id(record) in sent:
                    sent.remove(id(record))
                else:
                    kept.append(record)
            self._records.extendleft(reversed(kept))
            if not self._records:
                self._journal.truncate(0)
                if self._warned:
                    logger.warning("MLflow answers again: everything kept was sent")
                self._warned = False
            self._changed.notify_all()

    def _set_aside(self, records: Sequence[Record], reason: str) -> None:
        if not self.refused:
            logger.warning(f"MLflow refused records: {reason}; they are kept in {self.folder / REFUSED}")
        self.refused += len(records)
        try:
            keep_refused(self.folder, records, reason)
        except OSError as error:
            logger.warning(f"{len(records)} records that MLflow refused are lost: {first_line(error)}")

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            logger.warning(
                f"MLflow does not answer ({first_line(error)}): the job goes on, records are kept in "
                f"{self.folder} and sent when it does"
            )
        self._warned = True


def read_journal(folder: Path) -> list[Record]:
    """Records of an earlier process that were not all sent; a line cut off by a kill is left out."""
    return _read_lines(folder / JOURNAL)


def keep_refused(folder: Path, records: Sequence[Record], reason: str) -> None:
    """Add ``records`` to those that the server refused."""
    with (folder / REFUSED).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"reason": reason, "record": record}) + "\n" for record in records)


def reclaim(folder: Path) -> None:
    """Prepare the spool of an earlier process for a run that goes on.

    What was refused is tried again, and the end that could not be sent no longer holds.
    """
    refused = [line["record"] for line in _read_lines(folder / REFUSED)]
    left = [record for record in (*refused, *read_journal(folder)) if record["kind"] != "status"]
    temporary = folder / f"{JOURNAL}.tmp"
    temporary.write_text("".join(json.dumps(record) + "\n" for record in left), "utf-8")
    temporary.replace(folder / JOURNAL)
    (folder / REFUSED).unlink(missing_ok=True)


def remove_sent(folder: Path) -> None:
    """Delete a spool that was sent; what the server refused stays, with what leads to its run."""
    if (folder / REFUSED).exists():
        (folder / JOURNAL).unlink(missing_ok=True)
    else:
        remove_spool(folder)


def remove_spool(folder: Path) -> None:
    """Delete a spool, and the folder of all spools where it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def now_ms() -> int:
    """Milliseconds since the epoch, as MLflow counts."""
    return int(time.time() * 1000)


def first_line(error: Exception) -> str:
    """An exception in one short line."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {redacted(line)[:200]}"


def _next_batch(records: deque[Record]) -> list[Record]:
    """The record at the head; metrics take later metrics along, past files but not past an end."""
    batch = [records[0]]
    if batch[0]["kind"] != "metrics":
        return batch
    for record in itertools.islice(records, 1, MAX_SCAN):
        if record["kind"] in ("status", "link") or len(batch) == MAX_BATCH:
            break
        if record["kind"] == "metrics":
            batch.append(record)
    return batch

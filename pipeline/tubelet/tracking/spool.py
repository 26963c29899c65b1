"""A queue of records on disk and in memory, sent by a thread that waits out a server's absence.

Each record is a JSON object; it is appended to ``journal.jsonl`` before it is queued, and the journal is
emptied whenever all of it has been sent. Sending a record twice must do no harm.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Record = dict[str, Any]

logger = logging.getLogger(__name__)

MAX_RECORDS = 200_000  # a bound on memory (about 100 MB) when a server stays away for days
MAX_BATCH = 200
MAX_SCAN = 1000  # records looked through for metrics that can travel together
MAX_TRIES = 12  # of a record that the server refuses although it answers; then the record is given up
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
        self.dropped = 0
        self._records: deque[Record] = deque(read_journal(folder))
        self._journal = (folder / "journal.jsonl").open("a", encoding="utf-8")
        self._changed = threading.Condition()
        self._closing = False
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="mlflow-spool", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record; returns at once."""
        with self._changed:
            if self._closing or len(self._records) >= MAX_RECORDS:
                self.dropped += 1  # the newest: what was promised first is kept
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
        self._thread.join(timeout=30)
        self._journal.close()

    def _run(self) -> None:
        pause_s, tries = BACKOFF_S[0], 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records or self._closing)
                if self._closing:
                    return
                batch = _next_batch(self._records)
            try:
                self._send(batch)
            except RefusedError as error:
                self._give_up(batch, error)
            except Exception as error:
                tries += self._healthy()
                if tries >= MAX_TRIES:
                    self._give_up(batch, error)
                else:
                    self._warn_once(error)
                    self._pause(pause_s)
                    pause_s = min(pause_s * 2, BACKOFF_S[1])
                    continue
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

    def _give_up(self, batch: Sequence[Record], error: Exception) -> None:
        self.dropped += len(batch)
        logger.warning(f"MLflow refused {len(batch)} records: {first_line(error)}")

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            logger.warning(
                f"MLflow does not answer ({first_line(error)}): the job goes on, records are kept in "
                f"{self.folder} and sent when it does"
            )
        self._warned = True


def read_journal(folder: Path) -> list[Record]:
    """Records of an earlier process that were not all sent; a line cut off by a kill is left out."""
    path = folder / "journal.jsonl"
    records: list[Record] = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def now_ms() -> int:
    """Milliseconds since the epoch, as MLflow counts."""
    return int(time.time() * 1000)


def first_line(error: Exception) -> str:
    """An exception in one short line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


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

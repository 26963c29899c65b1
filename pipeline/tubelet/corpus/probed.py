"""What an index found before it was stopped, kept beside its output: the next run opens the rest only."""

from __future__ import annotations

import io
import logging
import threading
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.corpus.earlier import PROBED_COLUMNS, RULES
from tubelet.corpus.manifest import SCHEMA
from tubelet.corpus.versions import staging_folder
from tubelet.video import TRANSIENT

_log = logging.getLogger(__name__)

# A part is written when it has so many rows, or so much time has passed: what a kill costs.
_PART_ROWS = 5000
_PART_S = 60.0
_RULES = b"tubelet.rules"
_PART_SCHEMA = pa.schema(
    [SCHEMA.field(name) for name in ("key", "etag", *PROBED_COLUMNS)], {_RULES: str(RULES).encode()}
)


class Probed:
    """Verdicts on objects, by their content; a context manager that keeps what is new however the job ends.

    What failed for the store's or the machine's doing is no verdict, and is not kept.

    Args:
        out: the manifest that is being made. The parts lie beside it, under a name that readers skip.

    Attributes:
        reused: objects that need not be opened in this run.
    """

    def __init__(self, out: str) -> None:
        self.folder = staging_folder(out)
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._written_s = time.monotonic()
        self._known = self._load()
        self._places = dict(
            zip(
                zip(self._known["key"].to_pylist(), self._known["etag"].to_pylist(), strict=True),
                range(self._known.num_rows),
                strict=True,
            )
        )
        self.reused = 0

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Probed:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            try:
                self._flush()
            except Exception as error:  # the store may be what ended the job: that is the error to show
                _log.info("what was found is not kept: %s", error)

    def take(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The columns of an object that an earlier run looked into; None: it has to be opened."""
        place = self._places.get((row["key"], row["etag"]))
        if place is None:
            return None
        with self._lock:
            self.reused += 1
        found: dict[str, Any] = self._known.slice(place, 1).select(PROBED_COLUMNS).to_pylist()[0]
        return found

    def add(self, row: dict[str, Any]) -> None:
        """Keep the verdict on an object, for a run after this one."""
        if row["error_code"] in TRANSIENT:
            return
        with self._lock:
            self._rows.append({name: row.get(name) for name in _PART_SCHEMA.names})
            if len(self._rows) >= _PART_ROWS or time.monotonic() - self._written_s > _PART_S:
                self._flush()

    def forget(self) -> None:
        """The manifest is published: nothing has to be kept."""
        with self._lock:
            self._rows = []
        if self._known.num_rows or storage.exists(self.folder):
            storage.delete_tree(self.folder)

    def _flush(self) -> None:
        self._written_s = time.monotonic()
        if self._rows:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self._rows, _PART_SCHEMA), buffer, compression="zstd")
            name = f"probed-{uuid4().hex}.parquet"
            storage.write_bytes(storage.join(self.folder, name), buffer.getvalue())
            self._rows = []

    def _load(self) -> pa.Table:
        parts = []
        for name in storage.list_names(self.folder):
            if not name.startswith("probed-"):
                continue
            # A part that cannot be read, or is of other rules, costs its objects another look.
            with suppress(pa.ArrowException, FileNotFoundError):
                part = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(self.folder, name))))
                if (part.schema.metadata or {}).get(_RULES) == str(RULES).encode():
                    parts.append(part.select(_PART_SCHEMA.names).cast(_PART_SCHEMA))
        return pa.concat_tables(parts) if parts else _PART_SCHEMA.empty_table()

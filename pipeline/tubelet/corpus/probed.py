"""What looking into objects found: kept beside the output as it comes, so that no object is opened twice."""

from __future__ import annotations

import io
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.corpus.earlier import PROBED_COLUMNS, RULES, same_cells
from tubelet.corpus.known_rows import Ints, KnownRows, spans
from tubelet.corpus.manifest import SCHEMA
from tubelet.corpus.versions import staging_folder
from tubelet.storage import with_retries
from tubelet.video import TRANSIENT

_log = logging.getLogger(__name__)

# A part is written when it has so many rows or keyframes, or so much time has passed: what a kill costs.
_PART_ROWS = 5000
_PART_KEYFRAMES = 500_000
_PART_S = 60.0
_RULES = b"tubelet.rules"
_IDENTITY = ("key", "etag")
_SCHEMA = pa.schema([SCHEMA.field(name) for name in (*_IDENTITY, *PROBED_COLUMNS)])


def verdict_schema() -> pa.Schema:
    """Of a staged part; its metadata says by which rules the verdicts were found."""
    return _SCHEMA.with_metadata({_RULES: str(RULES)})


class Probed:
    """Verdicts on objects, by their content; a context manager that keeps what is new however the job ends.

    What failed for the store's or the machine's doing is no verdict: it is known to this run only.

    Args:
        out: the manifest that is being made. The parts lie beside it, under a name that readers skip.
        folder: a local folder for what is known.
    """

    def __init__(self, out: str, folder: Path) -> None:
        self.folder = staging_folder(out)
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._keyframes = 0
        self._written_s = time.monotonic()
        self._before = KnownRows(folder / "probed-before.arrow", _SCHEMA, _IDENTITY)
        self._new = KnownRows(folder / "probed-new.arrow", _SCHEMA, _IDENTITY)
        self._load()
        self._before.close()

    def __len__(self) -> int:
        return self._before.rows

    def __enter__(self) -> Probed:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            try:
                self._flush(patience_s=0)
            except Exception as error:  # the store may be what ended the job: that is the error to show
                _log.info("what was found is not kept: %s", error)

    def known(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which objects an earlier run looked into that did not come to its end."""
        return _find(self._before, batch) >= 0

    def add(self, row: dict[str, Any]) -> None:
        """Keep the verdict on an object, for this run and, if it is one, for a run after this one."""
        with self._lock:
            self._rows.append({name: row.get(name) for name in _SCHEMA.names})
            keyframes = row.get("keyframes_s")
            self._keyframes += 0 if keyframes is None else len(keyframes)
            full = len(self._rows) >= _PART_ROWS or self._keyframes >= _PART_KEYFRAMES
            if full or time.monotonic() - self._written_s > _PART_S:
                self._flush()

    def close(self) -> None:
        """No more verdicts; they can be looked up from here on."""
        with self._lock:
            self._flush()
            self._new.close()

    def gather(self, batch: pa.RecordBatch) -> pa.Table:
        """The verdict on each object of ``batch``; there has to be one."""
        old, new = _find(self._before, batch), _find(self._new, batch)
        here, there = np.flatnonzero(new >= 0), np.flatnonzero(new < 0)
        assert (old[there] >= 0).all(), "an object was not looked into"
        pieces = [
            self._new.gather(new[here], PROBED_COLUMNS),
            self._before.gather(old[there], PROBED_COLUMNS),
        ]
        order = np.argsort(np.concatenate([here, there]), kind="stable")
        return pa.concat_tables(pieces).combine_chunks().take(pa.array(order))

    def forget(self) -> None:
        """The manifest is published: nothing has to be kept."""
        with self._lock:
            self._rows = []
        if self._before.rows or storage.exists(self.folder):
            storage.delete_tree(self.folder)

    def _flush(self, patience_s: float | None = None) -> None:
        self._written_s = time.monotonic()
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, _SCHEMA)
        final = table.filter(pc.invert(pc.is_in(table["error_code"], pa.array(list(map(str, TRANSIENT))))))
        if final.num_rows:
            buffer = io.BytesIO()
            pq.write_table(final.cast(verdict_schema()), buffer, compression="zstd")
            name = f"probed-{uuid4().hex}.parquet"
            target, data = storage.join(self.folder, name), buffer.getvalue()
            with_retries(lambda: storage.write_bytes(target, data), patience_s=patience_s)
        self._new.add(table)
        self._rows, self._keyframes = [], 0

    def _load(self) -> None:
        for name in storage.list_names(self.folder):
            if not name.startswith("probed-"):
                continue
            # A part that cannot be read, or is of other rules, costs its objects another look.
            with suppress(pa.ArrowException, FileNotFoundError):
                part = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(self.folder, name))))
                if (part.schema.metadata or {}).get(_RULES) == str(RULES).encode():
                    self._before.add(part.select(_SCHEMA.names).cast(_SCHEMA))


def _find(rows: KnownRows, batch: pa.RecordBatch) -> Ints:
    """The number of the last row of each object's content, or -1."""
    found: Ints = np.full(batch.num_rows, -1, np.int64)
    if not rows.rows:
        return found
    places, owners = spans(*rows.find(batch))
    numbers = rows.rows_at(places)
    known = rows.gather(numbers, _IDENTITY)
    listed = batch.take(pa.array(owners))
    same = pc.and_(
        same_cells(listed.column("key"), known["key"]), same_cells(listed.column("etag"), known["etag"])
    ).to_numpy(zero_copy_only=False)
    found[owners[same]] = numbers[same]
    return found

"""Reads videos for what tells duplicates, and keeps what was found: unchanged ones are not read again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.corpus.beside import beside
from tubelet.corpus.likeness import HASHES, Hashes
from tubelet.progress import ProgressLine
from tubelet.storage import StorageOptions

How = Literal["exact", "near"]
Row = dict[str, Any]
Look = Callable[[Iterable[Row]], Iterator[Row]]
"""See :func:`tubelet.corpus.fingerprinting.fingerprints`."""

_NAME = "fingerprints.parquet"
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("digest", pa.string()),
        ("bits", pa.list_(pa.uint64())),
        ("said", pa.list_(pa.bool_())),
    ]
)
_FOUND = ("digest", "bits", "said")


class Fingerprints:
    """Digests and hashes of a manifest's videos, by key and etag.

    Args:
        out: the manifest, beside which they are kept.
        options: how to reach it, and the videos.
    """

    def __init__(self, out: str, options: StorageOptions) -> None:
        self._place, self._options, self._kept = beside(out, _NAME), options, options.for_writing()
        self._known: dict[tuple[str, str], Row] = {}
        try:
            rows = pq.read_table(io.BytesIO(storage.read_bytes(self._place, self._kept))).to_pylist()
            self._known = {(row["key"], row["etag"]): row for row in rows}
        except (FileNotFoundError, pa.ArrowException, KeyError):
            pass  # what is not known is looked at
        self.unread = 0

    def look(self, rows: list[Row], how: How, look: Look) -> None:
        """Find out what is missing of ``rows``, and keep it; forget all others.

        Exact copies have one size: the bytes of a video whose size no other has are not read.
        """
        sizes, counts = np.unique([row["size"] or 0 for row in rows], return_counts=True)
        shared = set(sizes[counts > 1].tolist()) - {0}
        wanted: list[Row] = []
        for row in rows:
            known = self._known.get(_name(row), {})
            digest = row["size"] in shared and not known.get("digest")
            hashes = how == "near" and not known.get("bits")
            if digest or hashes:
                wanted.append({**row, "wants_digest": digest, "wants_hashes": hashes})
        kept = {_name(row): self._known[_name(row)] for row in rows if _name(row) in self._known}
        self._known = kept
        if not wanted:
            return
        try:
            with ProgressLine("looking for duplicates", len(wanted), "videos") as line:
                for row in look(wanted):
                    self.unread += row["unread"] is not None
                    known = kept.get(_name(row), dict.fromkeys(_SCHEMA.names))
                    found = {name: row[name] for name in _FOUND if row[name] is not None}
                    kept[_name(row)] = {**known, **found, "key": row["key"], "etag": row["etag"] or ""}
                    line.advance(1, errors=self.unread)
        finally:  # of a job that is stopped, too: the next one looks at the rest
            self._save(kept.values())

    def digest(self, row: Row) -> str | None:
        """Of the bytes, where another video may have the same."""
        found: str | None = self._known.get(_name(row), {}).get("digest")
        return found

    def hashes(self, rows: list[Row]) -> Hashes:
        """Of the frames; those of a video that was not looked at say nothing."""
        bits, said = np.zeros((len(rows), HASHES), np.uint64), np.zeros((len(rows), HASHES), np.bool_)
        for number, row in enumerate(rows):
            known = self._known.get(_name(row), {})
            if known.get("bits"):
                bits[number], said[number] = known["bits"], known["said"]
        return Hashes(bits, said)

    def _save(self, rows: Iterable[Row]) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), _SCHEMA), buffer, compression="zstd")
        storage.write_bytes(self._place, buffer.getvalue(), self._kept)


def _name(row: Row) -> tuple[str, str]:
    return row["key"], row["etag"] or ""

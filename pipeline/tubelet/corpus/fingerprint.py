"""One short name for the content of a whole manifest."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa

from tubelet.corpus.manifest import label_columns

# Rows that are Python objects at once.
_ROWS = 4096
_BITS = 128


class Fingerprint:
    """Changes with any object, label or split of a manifest, whatever the order of its rows.

    Rows are hashed one by one and the hashes added (modulo 2**128), so that no more than a slice of a
    manifest need be held.
    """

    def __init__(self) -> None:
        self._heads: list[str] = []
        self._sum = 0

    def add(self, table: pa.Table) -> None:
        """More rows; those that are gone do not count."""
        self._heads = label_columns(table)
        rows = table.select(["key", "segment", "etag", *self._heads, "split", "status"])
        for batch in rows.to_batches(max_chunksize=_ROWS):
            *columns, status = (column.to_pylist() for column in batch.columns)
            for row, state in zip(zip(*columns, strict=True), status, strict=True):
                if state != "gone":
                    self._sum += int.from_bytes(_hash(json.dumps(row)), "big")
        self._sum %= 1 << _BITS

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return _hash(json.dumps([self._heads, self._sum])).hex()


def fingerprint(table: pa.Table) -> str:
    """The :class:`Fingerprint` of a whole table."""
    found = Fingerprint()
    found.add(table)
    return found.hexdigest()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_BITS // 8).digest()

"""What the output already holds: an index of published rows, small enough for tens of millions of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tubelet.corpus.digests import digests
from tubelet.video import Status

Hashes = npt.NDArray[np.uint64]

INDEX_COLUMNS = ["key", "window", "etag", "status"]


@dataclass(frozen=True)
class Published:
    """Published rows, sorted by the hash of their primary key: 21 bytes a row.

    Attributes:
        places: uint64 ``(rows,)``, hash of ``(key, window)``, ascending.
        contents: uint64 ``(rows,)``, hash of the etag the row was made from.
        failed: bool ``(rows,)``, the row is an error.
        parts: int32 ``(rows,)``, the number of the part file that holds the row.
    """

    places: Hashes
    contents: Hashes
    failed: npt.NDArray[np.bool_]
    parts: npt.NDArray[np.int32]

    @classmethod
    def of(cls, parts: Iterable[tuple[int, pa.Table]]) -> Published:
        """Index numbered part tables (they need :data:`INDEX_COLUMNS`), one after the other."""
        columns = [_index_part(number, table) for number, table in parts]
        if not columns:
            return cls(
                np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.bool_), np.empty(0, np.int32)
            )
        places, contents, failed, numbers = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(places, kind="stable")
        return cls(places[order], contents[order], failed[order], numbers[order])

    def __len__(self) -> int:
        return len(self.places)

    def locate(self, places: Hashes) -> npt.NDArray[np.int64]:
        """Index of each place among the published rows, -1 where there is none."""
        if not len(self.places):
            return np.full(len(places), -1, np.int64)
        at = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        return np.where(self.places[at] == places, at, -1)

    def is_done(self, places: Hashes, contents: Hashes, *, retry_errors: bool) -> npt.NDArray[np.bool_]:
        """Which requests need no work: published from the same content (and not an error to try again)."""
        at = self.locate(places)
        if not len(self):
            return np.zeros(len(places), np.bool_)
        done = (at >= 0) & (self.contents[at] == contents)
        return np.asarray(done & ~self.failed[at] if retry_errors else done, np.bool_)


def _index_part(number: int, table: pa.Table) -> tuple[Any, ...]:
    rows = table.num_rows
    places = digests(table["key"].to_pylist(), table["window"].to_pylist())
    contents = digests(table["etag"].to_pylist())
    failed = np.array([status == Status.ERROR for status in table["status"].to_pylist()], np.bool_)
    return places, contents, failed, np.full(rows, number, np.int32)

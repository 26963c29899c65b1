"""What the output already holds: an index of published rows, small enough for tens of millions of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.corpus.digests import digests
from tubelet.video import TRANSIENT, Status
from tubelet.video.errors import MAX_ATTEMPTS

Hashes = npt.NDArray[np.uint64]

INDEX_COLUMNS = ["key", "window", "etag", "status", "error_code", "attempts"]


@dataclass(frozen=True)
class Published:
    """Published rows, sorted by the hash of their primary key: 22 bytes per row.

    Attributes:
        places: uint64 ``(rows,)``, hash of ``(key, window)``, ascending.
        contents: uint64 ``(rows,)``, hash of the etag the row was made from.
        failed: bool ``(rows,)``, the row is an error.
        attempts: int8 ``(rows,)``, runs that ended with a transient error; 0 for all other rows.
        parts: int32 ``(rows,)``, the number of the part file that holds the row.
    """

    places: Hashes
    contents: Hashes
    failed: npt.NDArray[np.bool_]
    attempts: npt.NDArray[np.int8]
    parts: npt.NDArray[np.int32]

    @classmethod
    def of(cls, parts: Iterable[tuple[int, pa.Table]]) -> Published:
        """Index numbered part tables (they need :data:`INDEX_COLUMNS`), one after the other."""
        columns = [_index_part(number, table) for number, table in parts]
        if not columns:
            hashes: Hashes = np.empty(0, np.uint64)
            return cls(hashes, hashes, np.empty(0, np.bool_), np.empty(0, np.int8), np.empty(0, np.int32))
        places, *others = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(places, kind="stable")
        return cls(places[order], *(column[order] for column in others))

    def __len__(self) -> int:
        return len(self.places)

    def locate(self, places: Hashes) -> npt.NDArray[np.int64]:
        """Index of each place among the published rows, -1 where there is none."""
        if not len(self.places):
            return np.full(len(places), -1, np.int64)
        at = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        return np.where(self.places[at] == places, at, -1)

    def is_done(self, places: Hashes, contents: Hashes, *, retry_errors: bool) -> npt.NDArray[np.bool_]:
        """Which requests need no work: published from the same content, and no error to try again.

        An error of the store or the machine is tried again until it has come in
        :data:`tubelet.video.errors.MAX_ATTEMPTS` runs; with ``retry_errors`` every error is.
        """
        at = self.locate(places)
        if not len(self):
            return np.zeros(len(places), np.bool_)
        again = self.failed if retry_errors else (self.attempts > 0) & (self.attempts < MAX_ATTEMPTS)
        return np.asarray((at >= 0) & (self.contents[at] == contents) & ~again[at], np.bool_)

    def earlier_attempts(self, places: Hashes, contents: Hashes) -> npt.NDArray[np.int8]:
        """Earlier runs in which each request ended with a transient error of the same content."""
        if not len(self):
            return np.zeros(len(places), np.int8)
        at = self.locate(places)
        same = (at >= 0) & (self.contents[at] == contents)
        return np.where(same, self.attempts[at], 0).astype(np.int8)


def _index_part(number: int, table: pa.Table) -> tuple[Any, ...]:
    rows = table.num_rows
    places, contents = digests(table["key"], table["window"]), digests(table["etag"])
    failed = pc.fill_null(pc.equal(table["status"], Status.ERROR.value), False).to_numpy()
    return places, contents, failed, _attempts(table), np.full(rows, number, np.int32)


def _attempts(table: pa.Table) -> npt.NDArray[np.int8]:
    """At least 1 for a transient error: tables of before attempts were counted have no such column."""
    transient: npt.NDArray[np.int8] = (
        pc.is_in(table["error_code"], pa.array(sorted(TRANSIENT))).to_numpy().astype(np.int8)
    )
    if "attempts" not in table.column_names:
        return transient
    counted = pc.fill_null(table["attempts"], 0).to_numpy()
    return np.asarray(np.minimum(transient * np.maximum(counted, 1), 127), np.int8)

"""Rows that were written before, on local disk, found again by a digest of some of their columns.

Memory is 16 bytes per row, whatever the rows hold.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tubelet.corpus.digests import digests

Ints = npt.NDArray[np.int64]

_BATCH_ROWS = 2000
_BATCH_BYTES = 4 << 20
# Batches of the file that are kept in memory: rows are asked for nearly in the order of the file.
_CACHED = 8


class KnownRows:
    """Tables of one schema: all added, then looked up by the columns ``on``."""

    def __init__(self, file: Path, schema: pa.Schema, on: Sequence[str] = ("key",)) -> None:
        self._file, self._on = file, list(on)
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._source: pa.OSFile | None = None
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        self._cache: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._firsts: list[int] = []
        self._parts: list[npt.NDArray[np.uint64]] = []
        self._order: Ints = np.zeros(0, np.int64)
        self._sorted: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.schema = schema
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        """More rows."""
        fitting = max(1, table.num_rows * _BATCH_BYTES // max(1, table.nbytes))
        for batch in table.combine_chunks().to_batches(max_chunksize=min(_BATCH_ROWS, fitting)):
            if self._writer is None:
                self._writer = pa.ipc.new_file(str(self._file), self.schema)
            self._writer.write_batch(batch)
            self._firsts.append(self.rows)
            self._parts.append(digests(*(batch.column(name) for name in self._on)))
            self.rows += batch.num_rows

    def close(self) -> None:
        """No more rows; they can be looked up from here on."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._source = pa.OSFile(str(self._file))
            self._reader = pa.ipc.open_file(self._source)
            every = np.concatenate(self._parts)
            self._order = np.argsort(every, kind="stable").astype(np.int64)
            self._sorted = every[self._order]
            self._parts = []

    def find(self, rows: pa.RecordBatch) -> tuple[Ints, Ints]:
        """Where the rows that equal each of ``rows`` are: the first place, and one past the last.

        Places are for :meth:`rows_at`. Two rows may share a digest: compare what is found.
        """
        wanted = digests(*(rows.column(name) for name in self._on))
        first = np.searchsorted(self._sorted, wanted, "left")
        return first.astype(np.int64), np.searchsorted(self._sorted, wanted, "right").astype(np.int64)

    def rows_at(self, places: Ints) -> Ints:
        """The numbers of the rows at ``places``; the rows of one key come in the order they were added."""
        return self._order[places]

    def gather(self, numbers: Ints, columns: Sequence[str]) -> pa.Table:
        """These columns of the rows with these numbers, in this order."""
        names = list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        if not len(numbers):
            return schema.empty_table()
        batches = np.searchsorted(self._firsts, numbers, "right") - 1
        pieces, places = [], []
        for number in np.unique(batches):
            here = np.flatnonzero(batches == number)
            batch = self._batch(int(number)).select(names)
            pieces.append(batch.take(pa.array(numbers[here] - self._firsts[number])))
            places.append(here)
        order = np.argsort(np.concatenate(places), kind="stable")
        return pa.Table.from_batches(pieces, schema).combine_chunks().take(pa.array(order))

    def tables(self) -> list[int]:
        """The numbers of the batches, for :meth:`table`."""
        return list(range(len(self._firsts)))

    def table(self, number: int) -> tuple[Ints, pa.Table]:
        """The numbers of a batch's rows, and the rows."""
        batch = self._batch(number)
        first = self._firsts[number]
        return np.arange(first, first + batch.num_rows), pa.Table.from_batches([batch])

    def _batch(self, number: int) -> pa.RecordBatch:
        if number not in self._cache:
            assert self._reader is not None
            self._cache[number] = self._reader.get_batch(number)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]


def spans(firsts: Ints, lasts: Ints) -> tuple[Ints, Ints]:
    """All places from each of ``firsts`` to before each of ``lasts``, and which of the spans each is of."""
    counts = lasts - firsts
    owner = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(counts)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
    return within + firsts[owner], owner


def same_time(one: float | None, two: float | None) -> bool:
    """Equal to the millisecond, or both unknown."""
    if one is None or two is None:
        return one is two
    return math.isclose(one, two, abs_tol=1e-3)

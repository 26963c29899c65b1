"""The usable videos of a manifest, each once, by columns: what is held of them stays small at a million."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.corpus.digests import digests
from tubelet.corpus.manifest import FILE_FACTS, ManifestSlices
from tubelet.video import Status

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_TEXT = pa.large_string()  # a column of them may be of any size
_SCHEMA = pa.schema(
    [
        ("key", _TEXT),
        ("segment", pa.int32()),
        ("path", _TEXT),
        ("etag", _TEXT),
        ("size", pa.int64()),
        ("status", pa.string()),
        ("split", pa.string()),
        ("duration_s", pa.float64()),
        ("indexed_at", pa.timestamp("us")),
    ]
)
_NOT_NEEDED = frozenset(name for name, _ in FILE_FACTS) - set(_SCHEMA.names)
# The first row of a video, and the first of several videos, by these.
_ORDER = [("indexed_at", "ascending"), ("path", "ascending"), ("segment", "ascending")]
_ASKED = ("key", "uri", "path", "etag", "size")


class UniqueVideos:
    """The videos of a manifest, numbered by the time they were first indexed and then by their path.

    Args:
        manifest: where it lies; its rows are read once here, and once more by :meth:`rows`.

    Attributes:
        of_row: for each row of the manifest the number of its video, -1 where none of that key is usable.
        durations_s: by video, NaN where not known.
    """

    def __init__(self, manifest: str) -> None:
        self._manifest = manifest
        slices = [
            pa.table([table[field.name].cast(field.type) for field in _SCHEMA], schema=_SCHEMA)
            for table in ManifestSlices.open(manifest, without=_NOT_NEEDED)
        ]
        table = pa.concat_tables([_SCHEMA.empty_table(), *slices]).combine_chunks()
        del slices
        codes = _codes(table["key"])
        usable = pc.indices_nonzero(pc.equal(table["status"], str(Status.OK)))
        order = table.select([name for name, _ in _ORDER]).take(usable)
        rows = usable.to_numpy()[pc.sort_indices(order, sort_keys=_ORDER).to_numpy()].astype(np.int64)
        _, first = np.unique(codes[rows], return_index=True)
        self._places: Ints = rows[np.sort(first)]
        numbers = np.full(int(codes.max(initial=-1)) + 1, -1, np.int64)
        numbers[codes[self._places]] = np.arange(len(self._places))
        self.of_row: Ints = numbers[codes]
        kept = ["key", "etag", "path", "size", "split", "duration_s"]
        self._table = table.select(kept).take(pa.array(self._places))
        etags = pc.fill_null(self._table["etag"], "")
        self._table = self._table.set_column(1, "etag", etags).combine_chunks()
        self.durations_s = pc.fill_null(self._table["duration_s"], np.nan).to_numpy()
        every = digests(self._table["key"], self._table["etag"])
        self._by_digest: Ints = np.argsort(every, kind="stable")
        self._digests = every[self._by_digest]

    def __len__(self) -> int:
        return len(self._places)

    def column(self, name: str) -> pa.Array:
        """``key``, ``path`` or ``split`` of all videos."""
        return _one(self._table[name])

    def identities(self, numbers: Ints) -> tuple[pa.Array, pa.Array]:
        """Keys and etags (empty where there is none) of some videos."""
        wanted = pa.array(numbers)
        return self.column("key").take(wanted), self.column("etag").take(wanted)

    def share_a_size(self) -> Bools:
        """Which videos are as large as another one is."""
        sizes = pc.fill_null(self._table["size"], 0).to_numpy()
        _, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
        return np.asarray((counts[place.reshape(-1)] > 1) & (sizes != 0), np.bool_)

    def find(self, rows: pa.RecordBatch) -> Ints:
        """The numbers of the videos that have ``key`` and ``etag`` of ``rows``; -1: there is none."""
        if not len(self):
            return np.full(rows.num_rows, -1, np.int64)
        key, etag = rows.column("key").cast(_TEXT), pc.fill_null(rows.column("etag"), "").cast(_TEXT)
        place = np.searchsorted(self._digests, digests(key, etag))
        numbers = self._by_digest[np.minimum(place, len(self) - 1)]
        keys, etags = self.identities(numbers)
        same = pc.fill_null(pc.and_(pc.equal(keys, key), pc.equal(etags, etag)), False)
        return np.where(same.to_numpy(zero_copy_only=False), numbers, -1)

    def rows(self, wanted: Bools) -> Iterator[tuple[Ints, pa.Table]]:
        """Numbers of the ``wanted`` videos, and their rows: key, uri, path, etag, size."""
        numbers = np.full(len(self.of_row), -1, np.int64)
        numbers[self._places[wanted]] = np.flatnonzero(wanted)
        start = 0
        for table in ManifestSlices.open(self._manifest, without=_NOT_NEEDED):
            here = numbers[start : start + table.num_rows]
            start += table.num_rows
            places = np.flatnonzero(here >= 0)
            if len(places):
                yield here[places], table.select(_ASKED).take(pa.array(places))


def _codes(keys: pa.ChunkedArray) -> Ints:
    """A number per key, from 0."""
    found: Ints = _one(keys).dictionary_encode().indices.to_numpy().astype(np.int64)
    return found


def _one(column: pa.ChunkedArray) -> pa.Array:
    """In one piece."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

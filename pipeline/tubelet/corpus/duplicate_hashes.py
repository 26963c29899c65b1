"""Reads videos for what tells duplicates, and keeps what was found: unchanged ones are not read again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.corpus.beside import beside
from tubelet.corpus.digests import digests
from tubelet.corpus.likeness import HASHES, Hashes
from tubelet.corpus.unique_videos import Bools, Ints, UniqueVideos
from tubelet.progress import ProgressLine
from tubelet.storage import StorageOptions, with_retries

How = Literal["exact", "near"]
Row = dict[str, Any]
Look = Callable[[Iterable[Row]], Iterator[Row]]
"""See :func:`tubelet.corpus.fingerprinting.fingerprints`."""

_NAME = "fingerprints.parquet"
_DIGITS = 32
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("digest", pa.string()),
        ("bits", pa.list_(pa.uint64())),
        ("said", pa.list_(pa.bool_())),
    ]
)
# Rows that are read or written at once.
_ROWS = 16_384
# What is found is kept every so often: what a job that is killed has to read again.
_SAVE_S = 300.0


class Fingerprints:
    """Digests and hashes of a manifest's videos, in arrays: some 150 bytes per video.

    Args:
        out: the manifest, beside which they are kept by key and etag.
        videos: those that count; what is known of others is forgotten when something new is kept.
        options: how to reach the manifest and the videos.

    Attributes:
        unread: videos that could not be looked at.
    """

    def __init__(self, out: str, videos: UniqueVideos, options: StorageOptions) -> None:
        self._place, self._kept = beside(out, _NAME), options.for_writing()
        self._videos, count = videos, len(videos)
        self._digests = np.zeros(count, f"S{_DIGITS}")
        self._bits, self._said = np.zeros((count, HASHES), np.uint64), np.zeros((count, HASHES), np.bool_)
        self._hashed = np.zeros(count, np.bool_)
        self._saved_s = time.monotonic()
        self._load()
        self.unread = 0

    def look(self, how: How, look: Look) -> None:
        """Find out what is missing, and keep it.

        Exact copies have one size: the bytes of a video whose size no other has are not read.
        """
        digest = self._videos.share_a_size() & (self._digests == b"")
        hashes = ~self._hashed if how == "near" else np.zeros(len(digest), np.bool_)
        count = int((digest | hashes).sum())
        if not count:
            return
        try:
            with ProgressLine("looking for duplicates", count, "videos") as line:
                for row in look(self._asked(digest, hashes)):
                    self._add(row)
                    line.advance(1, errors=self.unread)
                    if time.monotonic() - self._saved_s > _SAVE_S:
                        self._save()
        finally:  # of a job that is stopped, too: the next one looks at the rest
            self._save()

    def contents(self) -> npt.NDArray[np.uint64]:
        """A hash of each video's bytes, uint64; 0 where no other can have the same."""
        found = np.zeros(len(self._digests), np.uint64)
        known = np.flatnonzero(self._digests != b"")
        found[known] = digests(_texts(self._digests[known]))
        return found

    def hashes(self) -> Hashes:
        """Of the frames; those of a video that was not looked at say nothing."""
        return Hashes(self._bits, self._said)

    def _asked(self, digest: Bools, hashes: Bools) -> Iterator[Row]:
        for numbers, rows in self._videos.rows(digest | hashes):
            for number, row in zip(numbers.tolist(), rows.to_pylist(), strict=True):
                wants = {"wants_digest": bool(digest[number]), "wants_hashes": bool(hashes[number])}
                yield {**row, "number": number, **wants}

    def _add(self, row: Row) -> None:
        number = row["number"]
        self.unread += row["unread"] is not None
        if row["digest"] is not None:
            self._digests[number] = row["digest"].encode()
        if row["bits"] is not None:
            self._bits[number], self._said[number], self._hashed[number] = row["bits"], row["said"], True

    def _load(self) -> None:
        """What is not known, or cannot be read, is looked at."""
        with tempfile.TemporaryDirectory(prefix="tubelet-") as folder:
            file = Path(folder) / _NAME
            try:
                with_retries(lambda: storage.download_file(self._place, file, self._kept))
                with pq.ParquetFile(file) as source:
                    for batch in source.iter_batches(_ROWS, columns=_SCHEMA.names):
                        self._take_over(batch)
            except (FileNotFoundError, pa.ArrowException, KeyError):
                pass

    def _take_over(self, batch: pa.RecordBatch) -> None:
        numbers = self._videos.find(batch)
        batch, numbers = batch.filter(pa.array(numbers >= 0)), numbers[numbers >= 0]
        digest, (bits, said) = batch.column("digest"), (batch.column(name) for name in ("bits", "said"))
        known = pc.fill_null(pc.equal(pc.binary_length(digest), _DIGITS), False)
        self._digests[_where(numbers, known)] = _fixed(digest.filter(known))
        lengths = (pc.equal(pc.list_value_length(column), HASHES) for column in (bits, said))
        known = pc.fill_null(pc.and_(*lengths), False)
        where = _where(numbers, known)
        self._hashed[where] = True
        for target, column in ((self._bits, bits), (self._said, said)):
            values = column.filter(known).flatten().to_numpy(zero_copy_only=False)
            target[where] = values.reshape(-1, HASHES)

    def _save(self) -> None:
        with tempfile.TemporaryDirectory(prefix="tubelet-") as folder:
            file = Path(folder) / _NAME
            known = np.flatnonzero(self._hashed | (self._digests != b""))
            with pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer:
                for start in range(0, len(known), _ROWS):
                    writer.write_table(self._table(known[start : start + _ROWS]))
            with_retries(lambda: storage.upload_file(file, self._place, self._kept))
        self._saved_s = time.monotonic()

    def _table(self, numbers: Ints) -> pa.Table:
        hashed, digest = self._hashed[numbers], self._digests[numbers]
        columns = dict(zip(("key", "etag"), self._videos.identities(numbers), strict=True))
        columns["digest"] = _spread(_texts(digest[digest != b""]), digest != b"")
        for name, values in (("bits", self._bits), ("said", self._said)):
            flat = pa.array(values[numbers[hashed]].ravel())
            columns[name] = _spread(pa.FixedSizeListArray.from_arrays(flat, HASHES), hashed)
        return pa.table({name: column.cast(_SCHEMA.field(name).type) for name, column in columns.items()})


def _where(numbers: Ints, known: pa.Array) -> Ints:
    found: Ints = numbers[known.to_numpy(zero_copy_only=False)]
    return found


def _fixed(digest: pa.Array) -> npt.NDArray[np.bytes_]:
    """Digests of :data:`_DIGITS` digits each, ``S32``."""
    found = digest.cast(pa.binary()).cast(pa.binary(_DIGITS))
    dtype = np.dtype(f"S{_DIGITS}")
    return np.frombuffer(found.buffers()[1] or b"", dtype, len(found), found.offset * _DIGITS)


def _texts(digest: npt.NDArray[np.bytes_]) -> pa.Array:
    """The other way round; none may be empty."""
    data = pa.py_buffer(np.ascontiguousarray(digest))
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(_DIGITS), len(digest), [None, data])
    return fixed.cast(pa.binary()).cast(pa.string())


def _spread(values: pa.Array, known: Bools) -> pa.Array:
    """``values`` at the places that are ``known``, null at the others."""
    return values.take(pa.array(np.cumsum(known) - 1, mask=~known))

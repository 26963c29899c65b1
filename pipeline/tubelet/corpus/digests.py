"""Content hashes of rows: what tells two rows apart in eight bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

# Odd, so that multiplying by it loses nothing, and the order of the columns counts.
_MIX = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0xD6E8FEB86659FD93)
# Rows at a time: the intermediate arrays then stay in the processor's cache.
_ROWS = 16_384
_WORD = 8


def digests(*columns: Any) -> Hashes:
    """A 64-bit content hash of each row of ``columns``, arrays or lists of texts or whole numbers.

    Ten million rows collide with probability 3e-6, and 8 bytes a row keep the driver's memory flat. Nothing
    keeps them: they are this process's own.

    Returns:
        uint64 ``(rows,)``.
    """
    found: Hashes = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
        found = found * _MIX ^ _hashes(pa.chunked_array([array]) if isinstance(array, pa.Array) else array)
    return found


def _hashes(column: pa.ChunkedArray) -> Hashes:
    if pa.types.is_integer(column.type):
        return _mixed(column.cast(pa.int64()).fill_null(0).to_numpy().astype(np.uint64))
    texts = column.cast(pa.large_string()).combine_chunks()
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    slices = [chunk.slice(first, _ROWS) for chunk in chunks for first in range(0, len(chunk), _ROWS)]
    return np.concatenate([np.zeros(0, np.uint64), *map(_of_texts, slices)])


def _of_texts(texts: pa.LargeStringArray) -> Hashes:
    """Hash texts word by word, all texts at once."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(texts) + 1, _WORD * texts.offset)
    first, sizes = int(bounds[0]), np.diff(bounds)
    # A word may reach beyond the last text.
    size = int(bounds[-1]) - first
    bytes_ = np.zeros(size + _WORD, np.uint8)
    if size:
        bytes_[:size] = np.frombuffer(data, np.uint8, size, first)
    words = np.ndarray((size + 1,), "<u8", bytes_, strides=(1,))  # the word that begins at each byte
    starts = bounds[:-1] - first
    found = _mixed(sizes.astype(np.uint64) + _MIX)
    for place in range(0, int(sizes.max(initial=0)), _WORD):
        longer: Any = slice(None) if sizes.min() > place else np.flatnonzero(sizes > place)
        unused_bits = 8 * np.clip(place + _WORD - sizes[longer], 0, _WORD - 1).astype(np.uint64)
        word = words[starts[longer] + place] << unused_bits
        found[longer] = _mixed(found[longer] ^ word)
    if texts.null_count:
        found[texts.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return found


def _mixed(values: Hashes) -> Hashes:
    """A mixing that maps no two numbers to one, and spreads a change of any bit over all (MurmurHash3)."""
    shift = np.uint64(33)
    values = values ^ values >> shift
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ values >> shift
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ values >> shift

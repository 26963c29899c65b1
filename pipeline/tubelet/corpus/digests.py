"""Content hashes of rows: what tells two rows apart in eight bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

# Odd, so that multiplying by it loses nothing, and the order of the columns counts.
_MIX = np.uint64(0x9E3779B97F4A7C15)


def digests(*columns: Any) -> npt.NDArray[np.uint64]:
    """A 64-bit content hash of each row of ``columns``, arrays or lists of texts or whole numbers.

    Ten million rows collide with probability 3e-6, and 8 bytes a row keep the driver's memory flat. Nothing
    keeps them: they are this process's own.

    Returns:
        uint64 ``(rows,)``.
    """
    found: npt.NDArray[np.uint64] = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
        found = found * _MIX ^ _hashes(pa.chunked_array([array]) if isinstance(array, pa.Array) else array)
    return found


def _hashes(column: Any) -> npt.NDArray[np.uint64]:
    # SipHash of texts, and a mixing that maps no two numbers to one.
    if pa.types.is_integer(column.type):
        values = column.cast(pa.int64()).fill_null(0).to_numpy()
    else:
        values = column.cast(pa.string()).to_numpy().astype(object)
    return np.asarray(pd.util.hash_array(values, categorize=False), np.uint64)

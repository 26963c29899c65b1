"""Content hashes of rows: what tells two rows apart in eight bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def digests(*columns: Iterable[object]) -> npt.NDArray[np.uint64]:
    """A 64-bit content hash of each row of ``columns`` (uint64 ``(rows,)``).

    Ten million rows collide with probability 3e-6, and 8 bytes a row keep the driver's memory flat.
    """
    joined = (
        "\x00".join(map(str, row)).encode("utf-8", "surrogatepass") for row in zip(*columns, strict=True)
    )
    data = b"".join(hashlib.blake2b(item, digest_size=8).digest() for item in joined)
    return np.frombuffer(data, dtype=np.uint64)

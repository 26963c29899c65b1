"""Randomness is a function: every draw comes from the names of what it is for, never from a stream's state.

So a sample looks the same whichever worker decodes it, and a resumed run draws what the first run drew.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(*names: int | str) -> int:
    """A 63-bit seed that depends on ``names`` only, the same on every machine and Python."""
    text = "\x1f".join(str(name) for name in names).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(*names: int | str) -> np.random.Generator:
    """A numpy generator (Philox) seeded by ``names``."""
    return np.random.Generator(np.random.Philox(key=seed_of(*names)))

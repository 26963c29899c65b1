"""Which videos of a manifest are there twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tubelet.corpus.likeness import FRAMES, Hashes, alike

Ints = npt.NDArray[np.int64]

# Bits of a frame's hash that are compared at once: pairs that agree in one such band are looked at closely.
_BAND_BITS = 16
_BANDS = 64 // _BAND_BITS


class Videos(NamedTuple):
    """What is known of videos, in the order in which the first of several is the original.

    Attributes:
        contents: uint64 ``(n,)``, hash of the content; 0 where no other video can have it.
        durations_s: float64 ``(n,)``, NaN where not known.
        hashes: of their frames, or None where only contents count.
    """

    contents: npt.NDArray[np.uint64]
    durations_s: npt.NDArray[np.float64]
    hashes: Hashes | None


def originals(videos: Videos) -> Ints:
    """For each video the first that shows the same: its own number where it is the first, or alone."""
    n = len(videos.contents)
    known = np.flatnonzero(videos.contents)
    pairs = [_neighbours(videos.contents[known], known)]
    if videos.hashes is not None:
        pairs += _near(videos, videos.hashes)
    one, two = np.concatenate(pairs).T
    alike_or_not = coo_array((np.ones(len(one), np.bool_), (one, two)), (n, n))
    count, group = connected_components(alike_or_not, directed=False)
    first = np.full(count, n, np.int64)
    np.minimum.at(first, group, np.arange(n))
    found: Ints = first[group]
    return found


def _near(videos: Videos, hashes: Hashes) -> Iterator[Ints]:
    for frame in range(FRAMES):
        said = np.flatnonzero(hashes.said[:, frame])
        for band in range(_BANDS):
            values = hashes.bits[said, frame] >> np.uint64(band * _BAND_BITS) & np.uint64(
                (1 << _BAND_BITS) - 1
            )
            pairs = _neighbours(values, said)
            one, two = (Hashes(hashes.bits[pairs[:, k]], hashes.said[pairs[:, k]]) for k in (0, 1))
            times_s = tuple(videos.durations_s[pairs[:, k]] for k in (0, 1))
            yield pairs[alike(one, two, times_s)]


def _neighbours(values: npt.NDArray[np.uint64], numbers: Ints) -> Ints:
    """Pairs of equal values, int64 ``(pairs, 2)``: each with the one before it, and with the first.

    That keeps a value which very many have, such as that of a title card, from costing its square.
    """
    if not len(values):
        return np.zeros((0, 2), np.int64)
    order = np.argsort(values, kind="stable")
    ordered, numbers = values[order], numbers[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(ordered)), 0))
    later = np.flatnonzero(~begins)
    again = later[later - 1 != first[later]]
    with_the_one_before = np.stack([numbers[later - 1], numbers[later]], 1)
    with_the_first = np.stack([numbers[first[again]], numbers[again]], 1)
    return np.concatenate([with_the_one_before, with_the_first])

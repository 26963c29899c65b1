"""Which videos of a manifest are there twice."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tubelet.corpus.likeness import FEW, FRAMES, HASHES, Hashes, alike, unlike

Ints = npt.NDArray[np.int64]

# Bits of a frame's hash that are compared at once: pairs that agree in one such band are looked at closely.
_BAND_BITS = 16
_BANDS = 64 // _BAND_BITS
# Pairs that are compared at once: what they need then stays in the processor's cache.
_PAIRS = 16_384


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
    """For each video the first that shows the same: its own number where it is the first, or alone.

    Time and memory are linear in the videos: of no value are all pairs compared (see :func:`_neighbours`),
    and what is alike in one frame is joined before the next one is looked at.
    """
    known = np.flatnonzero(videos.contents)
    first = _joined(np.arange(len(videos.contents)), _neighbours(videos.contents[known], known))
    if videos.hashes is not None:
        for frame in range(FRAMES):
            for band in range(_BANDS):
                pairs = _sharing(videos.hashes, frame, band)
                pairs = pairs[first[pairs[:, 0]] != first[pairs[:, 1]]]
                first = _joined(first, pairs[_alike(videos, videos.hashes, pairs)])
    return first


def _joined(first: Ints, pairs: Ints) -> Ints:
    """The first of each video's group, when those of ``pairs`` are one."""
    if not len(pairs):
        return first
    n, (one, two) = len(first), first[pairs].T
    alike_or_not = coo_array((np.ones(len(one), np.bool_), (one, two)), (n, n))
    count, group = connected_components(alike_or_not, directed=False)
    least = np.full(count, n, np.int64)
    np.minimum.at(least, group, np.arange(n))
    found: Ints = least[group][first]
    return found


def _sharing(hashes: Hashes, frame: int, band: int) -> Ints:
    """Pairs that agree in one band of one frame."""
    said = np.flatnonzero(hashes.said[:, frame])
    values = (hashes.bits[said, frame] >> np.uint64(band * _BAND_BITS)).astype(np.uint16)
    return _neighbours(values, said)


def _alike(videos: Videos, hashes: Hashes, pairs: Ints) -> npt.NDArray[np.bool_]:
    """Which pairs show the same, a slice of them at a time."""
    found = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), _PAIRS):
        some = pairs[start : start + _PAIRS]
        left = np.flatnonzero(~unlike(*_both(hashes, some, FEW)))
        some = some[left]
        times_s = tuple(videos.durations_s[some[:, k]] for k in (0, 1))
        found[start + left] = alike(*_both(hashes, some, HASHES), times_s)
    return found


def _both(hashes: Hashes, pairs: Ints, count: int) -> tuple[Hashes, Hashes]:
    bits, said = hashes.bits[:, :count], hashes.said[:, :count]
    return Hashes(bits[pairs[:, 0]], said[pairs[:, 0]]), Hashes(bits[pairs[:, 1]], said[pairs[:, 1]])


def _neighbours(values: npt.NDArray[np.unsignedinteger[Any]], numbers: Ints) -> Ints:
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

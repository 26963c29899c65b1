"""Which videos of a manifest are there twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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


@dataclass
class _Groups:
    """Sets of videos that were joined (union-find); the first of each stands for it."""

    of: Ints

    def find(self, one: int) -> int:
        while self.of[one] != one:
            self.of[one] = self.of[self.of[one]]
            one = int(self.of[one])
        return one

    def join(self, one: int, two: int) -> None:
        first, second = sorted((self.find(one), self.find(two)))
        self.of[second] = first


def originals(videos: Videos) -> Ints:
    """For each video the first that shows the same: its own number where it is the first, or alone."""
    n = len(videos.contents)
    groups = _Groups(np.arange(n, dtype=np.int64))
    known = np.flatnonzero(videos.contents)
    for one, two in _neighbours(videos.contents[known], known):
        groups.join(one, two)
    if videos.hashes is not None:
        for one, two in _near(videos, videos.hashes):
            groups.join(one, two)
    return np.array([groups.find(number) for number in range(n)], np.int64)


def _near(videos: Videos, hashes: Hashes) -> Iterator[tuple[int, int]]:
    for frame in range(FRAMES):
        said = np.flatnonzero(hashes.said[:, frame])
        for band in range(_BANDS):
            values = hashes.bits[said, frame] >> np.uint64(band * _BAND_BITS) & np.uint64(
                (1 << _BAND_BITS) - 1
            )
            pairs = np.array(list(_neighbours(values, said)), np.int64).reshape(-1, 2)
            one, two = (Hashes(hashes.bits[pairs[:, k]], hashes.said[pairs[:, k]]) for k in (0, 1))
            times_s = tuple(videos.durations_s[pairs[:, k]] for k in (0, 1))
            yield from pairs[alike(one, two, times_s)].tolist()


def _neighbours(values: npt.NDArray[np.uint64], numbers: Ints) -> Iterator[tuple[int, int]]:
    """Pairs of equal values: each with the one before it, and with the first.

    That keeps a value which very many have, such as that of a title card, from costing its square.
    """
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    ordered, numbers = values[order], numbers[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(ordered)), 0))
    later = np.flatnonzero(~begins)
    yield from zip(numbers[later - 1].tolist(), numbers[later].tolist(), strict=True)
    again = later[later - 1 != first[later]]
    yield from zip(numbers[first[again]].tolist(), numbers[again].tolist(), strict=True)

"""What tells whether two videos show the same: a digest of the bytes, and perceptual hashes of a few frames.

The hashes are those of ``imagehash.phash`` (64 bits of the lowest frequencies of a picture), of frames spread
over the video and of what changes between them. Frames alone would take any two clips of one fixed camera for
the same video. A picture without detail says nothing, and is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from tubelet.video import Stretch, Uniform, View
from tubelet.video.decode import Clip

FRAMES = 8
SIDE = 64
HASHES = 2 * FRAMES - 1
"""Of a video: its frames', then the changes' between them."""

_READ_BYTES = 1 << 20
# Standard deviation, in grey levels, of a picture that has any detail; changes are fainter than pictures.
_DETAIL = 4.0
_CHANGE = 1.5
# Of 64 bits, those that may differ in the mean: encoding, scaling and other colours change up to a few, two
# pictures that have nothing in common differ in 32.
_FRAMES_DIFFER = 9.0
_CHANGES_DIFFER = 16.0
# At least so many frames have to say something.
_LEAST_FRAMES = 4
_DURATION = 0.02
FEW = 4
"""Frames, the first ones, that tell nearly all pairs which have nothing in common: see :func:`unlike`."""

VIEW = View(Uniform(FRAMES), Stretch(SIDE, SIDE))
"""What is decoded of each video."""

Uints = npt.NDArray[np.uint64]


class Hashes(NamedTuple):
    """Of one video, or of many.

    Attributes:
        bits: uint64 ``(…, HASHES)``.
        said: bool ``(…, HASHES)``, which of them say something.
    """

    bits: Uints
    said: npt.NDArray[np.bool_]


def digest_of(open_object: Callable[[], BinaryIO]) -> str:
    """The BLAKE2b-128 hash of all bytes, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with open_object() as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def hashes_of(clip: Clip) -> Hashes:
    """Of the frames of :data:`VIEW`, uint8 ``(FRAMES, SIDE, SIDE, 3)``."""
    grey = clip.frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    changes = np.abs(np.diff(grey, axis=0))
    pictures = [*grey, *(np.minimum(255, 4 * change) for change in changes)]
    said = [picture.std() >= _DETAIL for picture in grey] + [change.std() >= _CHANGE for change in changes]
    bits = np.array([_phash(picture) for picture in pictures], np.uint64)
    return Hashes(bits, np.array(said, np.bool_))


def _phash(picture: npt.NDArray[np.float32]) -> int:
    import imagehash
    from PIL import Image

    found = imagehash.phash(Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)))
    return int(str(found), 16)


def alike(
    one: Hashes, two: Hashes, durations_s: tuple[npt.NDArray[np.float64], ...]
) -> npt.NDArray[np.bool_]:
    """Which pairs of videos show the same.

    Args:
        one: ``(pairs, HASHES)``.
        two: the same.
        durations_s: of both, ``(pairs,)`` each; NaN where it is not known.

    Returns:
        bool ``(pairs,)``.
    """
    both = one.said & two.said
    differ = np.where(both, _differing(one.bits ^ two.bits), 0)
    frames, changes = both[:, :FRAMES].sum(1), both[:, FRAMES:].sum(1)
    same = frames >= _LEAST_FRAMES
    same &= differ[:, :FRAMES].sum(1) <= _FRAMES_DIFFER * frames
    same &= differ[:, FRAMES:].sum(1) <= _CHANGES_DIFFER * changes
    # Where one moves and the other doesn't, they are two videos.
    same &= 2 * (one.said ^ two.said)[:, FRAMES:].sum(1) <= FRAMES - 1
    first_s, second_s = durations_s
    unlike = np.abs(first_s - second_s) > np.maximum(0.2, _DURATION * np.maximum(first_s, second_s))
    return np.asarray(same & ~unlike, np.bool_)


def unlike(one: Hashes, two: Hashes) -> npt.NDArray[np.bool_]:
    """Pairs that :func:`alike` says no to, whatever the other frames are, by the first :data:`FEW` alone.

    Args:
        one: ``(pairs, FEW)``.
        two: the same.

    Returns:
        bool ``(pairs,)``; others may be unlike, too.
    """
    differ = np.where(one.said & two.said, _differing(one.bits ^ two.bits), 0)
    return np.asarray(differ.sum(1) > _FRAMES_DIFFER * FRAMES, np.bool_)


def _differing(bits: Uints) -> npt.NDArray[np.int64]:
    """How many bits are set in each: sums of two, four and eight neighbours, then of the bytes."""
    bits = bits - (bits >> np.uint64(1) & _EVERY_2ND)
    bits = (bits & _TWO_OF_4) + (bits >> np.uint64(2) & _TWO_OF_4)
    bits = bits + (bits >> np.uint64(4)) & _FOUR_OF_8
    return (bits * _BYTES >> np.uint64(56)).astype(np.int64)


_EVERY_2ND, _TWO_OF_4 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_FOUR_OF_8, _BYTES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)

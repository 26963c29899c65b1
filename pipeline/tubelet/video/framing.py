"""Which part of a picture a clip shows, and how large: rules resolved once the shown size is known.

Sizes follow the paper's reader (scenic/dataset_lib/video_ops.py and DMVR's processors.py: resize_smallest,
scale_jitter_augm, three spatial crops).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

Interpolation = Literal["bilinear", "bicubic"]
"""How pixels are resized; either way over the area that a pixel of a smaller picture covers."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: rows ``top`` to ``top + height``, columns ``left`` to ``left + width``."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ValueError(f"not a part of a picture: {self}")


@dataclass(frozen=True)
class Placement:
    """Cut ``source`` out of the shown picture, resize it to ``height x width``, cut ``crop``, then flip."""

    source: Box
    height: int
    width: int
    crop: Box
    flip: bool = False
    interpolation: Interpolation = "bilinear"

    def scales_like(self, other: Placement) -> bool:
        """Whether both resize the same part to the same size, whatever they cut from it."""
        return self is other or self._scaling == other._scaling

    @property
    def _scaling(self) -> tuple[Box, int, int, str]:
        return self.source, self.height, self.width, self.interpolation

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        return self.crop.height, self.crop.width


class SpaceRule(Protocol):
    """How a picture of a known size is placed."""

    def place(self, height: int, width: int) -> Placement:
        """For a shown picture of ``height x width`` pixels."""


def _resized(height: int, width: int, new_height: int, new_width: int, crop: Box | None = None) -> Placement:
    crop = crop or Box(0, 0, new_height, new_width)
    return Placement(Box(0, 0, height, width), new_height, new_width, crop)


def resize_smallest(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) in pixels with the shorter side at ``short_side``.

    The longer side is rounded down, as in DMVR's resize_smallest.
    """
    return max(short_side, height * short_side // width), max(short_side, width * short_side // height)


def _check_sides(**sides: int | None) -> None:
    for name, value in sides.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, given {value!r}")


@dataclass(frozen=True)
class ShortSide:
    """Resize the shorter side, then cut a square.

    ``position`` lies along the longer side (0 left or top, 0.5 centre, 1 right or bottom); the shorter side
    is cut in its centre. ``ceil``: centres are rounded up, as the paper's three crops are; its single
    central crop rounds down. A picture smaller than ``crop`` is enlarged to it.
    """

    short_side: int | None = None
    crop: int | None = None
    position: float = 0.5
    ceil: bool = False

    def __post_init__(self) -> None:
        _check_sides(short_side=self.short_side, crop=self.crop)
        if self.short_side and self.crop and self.crop > self.short_side:
            raise ValueError(f"crop {self.crop} is larger than short_side {self.short_side}")
        if not 0 <= self.position <= 1:
            raise ValueError(f"position must lie in [0, 1], given {self.position!r}")

    def place(self, height: int, width: int) -> Placement:
        """The square at ``position``; without ``crop``, the whole picture with its shorter side resized."""
        short_side = self.short_side
        if short_side is None and self.crop is not None and min(height, width) < self.crop:
            short_side = self.crop
        new_height, new_width = (
            (height, width) if short_side is None else resize_smallest(height, width, short_side)
        )
        if self.crop is None:
            return _resized(height, width, new_height, new_width)
        wide = new_width >= new_height
        top = self._offset(new_height - self.crop, 0.5 if wide else self.position)
        left = self._offset(new_width - self.crop, self.position if wide else 0.5)
        return _resized(height, width, new_height, new_width, Box(top, left, self.crop, self.crop))

    def _offset(self, room: int, position: float) -> int:
        return math.ceil(room * position) if self.ceil else math.floor(room * position)


@dataclass(frozen=True)
class Stretch:
    """Resize to ``height x width`` whatever the shape."""

    height: int
    width: int

    def __post_init__(self) -> None:
        _check_sides(height=self.height, width=self.width)

    def place(self, height: int, width: int) -> Placement:
        """The whole picture, of ``height x width`` pixels, resized to the rule's own height and width."""
        return _resized(height, width, self.height, self.width)


@dataclass(frozen=True)
class JitterCrop:
    """The paper's training crop: resize the shorter side, jitter both sides, cut a random square, maybe flip.

    ``jitter``: range of the scale factors; ``u``: four random numbers in [0, 1) for the factor of the
    height, of the width (drawn apart), and for the top and left of the crop.
    """

    short_side: int
    crop: int
    jitter: tuple[float, float]
    u: tuple[float, float, float, float]
    flip: bool = False

    def __post_init__(self) -> None:
        _check_sides(short_side=self.short_side, crop=self.crop)
        if not 0 < self.jitter[0] <= self.jitter[1]:
            raise ValueError(f"jitter must be a rising range of positive factors, given {self.jitter!r}")

    def place(self, height: int, width: int) -> Placement:
        """A ``crop x crop`` square of the whole picture at its jittered size."""
        u_height, u_width, u_top, u_left = self.u
        low, high = self.jitter
        new_height, new_width = resize_smallest(height, width, self.short_side)
        # Never below the crop: a small factor on a small picture would leave no square to cut.
        new_height = max(self.crop, int(new_height * (low + u_height * (high - low))))
        new_width = max(self.crop, int(new_width * (low + u_width * (high - low))))
        top = int(u_top * (new_height - self.crop + 1))
        left = int(u_left * (new_width - self.crop + 1))
        placed = _resized(height, width, new_height, new_width, Box(top, left, self.crop, self.crop))
        return Placement(placed.source, placed.height, placed.width, placed.crop, self.flip)


@dataclass(frozen=True)
class ResizedCrop:
    """Random resized crop: a part of random area and shape, resized to a square, maybe flipped.

    ``scale``: range of the part's area as a fraction; ``ratio``: range of width over height, drawn evenly
    in its logarithm; ``u``: four random numbers in [0, 1) for area, ratio, top and left.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    u: tuple[float, float, float, float]
    flip: bool = False

    def __post_init__(self) -> None:
        _check_sides(size=self.size)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a rising range of positive numbers, given {(low, high)!r}")

    def place(self, height: int, width: int) -> Placement:
        """The drawn part, cut off at the picture's borders, resized to ``size x size`` pixels."""
        u_area, u_ratio, u_top, u_left = self.u
        area = height * width * (self.scale[0] + u_area * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = math.exp(low + u_ratio * (high - low))
        part_height = min(height, max(1, round(math.sqrt(area / ratio))))
        part_width = min(width, max(1, round(math.sqrt(area * ratio))))
        top = int(u_top * (height - part_height + 1))
        left = int(u_left * (width - part_width + 1))
        source = Box(top, left, part_height, part_width)
        return Placement(source, self.size, self.size, Box(0, 0, self.size, self.size), self.flip)

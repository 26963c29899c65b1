"""From a decoded frame to RGB pixels: right side up, scaled, cropped.

Scaling is swscale's bilinear or bicubic, at the end of which the small picture becomes RGB. Colour matrix and
range are the frame's; where it names none, swscale takes BT.601. Interlaced frames are one picture of two
woven fields, as the decoder gives them; scaling down blends the fields.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import Interpolation, VideoReformatter

from tubelet.video.framing import Box, Placement

Pixels = npt.NDArray[np.uint8]

# Formats that are scaled into planes of R, G and B, which swscale does with colour at full resolution,
# rounded, and in vector code; what is cut from the planes is then woven together. Straight to rgb24 it takes
# the nearest colour and rounds down: 1.5 grey levels too dark everywhere, more off where there is much
# colour, and slower.
_PLANES = "gbrp"
_RED, _GREEN, _BLUE = 2, 0, 1
_INTERPOLATIONS = {"bilinear": Interpolation.BILINEAR, "bicubic": Interpolation.BICUBIC}
# What layers fill of an RGB picture, by how many there are.
_CHANNELS: dict[int, tuple[int | slice, ...]] = {1: (slice(3),), 3: (0, 1, 2)}
_SCALED_IN_PLANES = {
    "yuv420p", "yuv420p10le", "yuv420p12le", "nv12", "yuv422p", "yuv422p10le", "yuv422p12le", "yuv410p",
    "yuv411p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p",
}  # fmt: skip


def display_matrix(frame: Any) -> bytes | int | None:
    """What a frame says of its orientation: a matrix, or degrees clockwise where that cannot be had."""
    try:
        # Not frame.side_data, which holds the frame that holds it: until the next garbage collection the
        # decoder could not write into the frame's memory again (see FrameFormat).
        side_data = SideDataContainer(frame)  # type: ignore[call-arg]  # its stub leaves that out
        data = side_data.get("DISPLAYMATRIX") if len(side_data) else None
    except ValueError:  # side data of a kind that PyAV has no name for hides the rest
        return int(-frame.rotation % 360)
    return None if data is None else bytes(data)


@dataclass(frozen=True)
class Orientation:
    """How the coded picture becomes the shown one: first swap rows and columns, then mirror.

    From the display matrix (ISO/IEC 14496-12, 6.2.2), snapped to the nearest of the eight right-angled ones.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """From the frame's side data."""
        matrix = display_matrix(frame)
        if isinstance(matrix, int):
            return cls._turned(matrix)
        if matrix is None or len(matrix) < 36:
            return cls()
        a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, b < 0, c < 0)
        return cls(False, d < 0, a < 0)

    @classmethod
    def _turned(cls, clockwise: int) -> Orientation:
        quarter = round(clockwise / 90) % 4
        return (cls(), cls(True, False, True), cls(False, True, True), cls(True, True, False))[quarter]

    @property
    def rotation(self) -> int:
        """Degrees clockwise from the coded to the shown picture: 0, 90, 180 or 270 (mirroring left aside)."""
        if self.transpose:
            return 90 if self.flip_columns else 270
        return 180 if self.flip_rows else 0

    @property
    def mirrored(self) -> bool:
        """Whether the shown picture is a mirror image of the coded one."""
        return self.transpose ^ self.flip_rows ^ self.flip_columns

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after orienting; its own inverse."""
        return (width, height) if self.transpose else (height, width)

    def apply(self, pixels: Pixels) -> Pixels:
        """A view of (H, W) or (H, W, 3) pixels, right side up."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def coded_box(self, box: Box, height: int, width: int) -> Box:
        """Where a part of the shown picture (of ``height x width``) lies in the coded one."""
        top = height - box.top - box.height if self.flip_rows else box.top
        left = width - box.left - box.width if self.flip_columns else box.left
        if self.transpose:
            return Box(left, top, box.width, box.height)
        return Box(top, left, box.height, box.width)


@dataclass(frozen=True)
class Shape:
    """Size and orientation of a frame as coded and as shown."""

    height: int
    width: int
    orientation: Orientation

    @classmethod
    def of(cls, frame: Any, sample_aspect: Fraction) -> Shape:
        """Shown size: square pixels (the width is stretched), then right side up."""
        width = frame.width if sample_aspect == 1 else max(1, round(frame.width * sample_aspect))
        orientation = Orientation.of(frame)
        return cls(*orientation.size(frame.height, width), orientation)


class Painter:
    """Turns frames into pixels.

    Keeps one scaler per pair of sizes and pixel format, as setting one up costs a frame's time.
    """

    def __init__(self) -> None:
        self._scalers: dict[tuple[Any, ...], VideoReformatter] = {}
        self._cutter = Cutter()

    def paint(self, frame: Any, shape: Shape, placements: list[Placement], outs: list[Pixels]) -> None:
        """Write one picture for each placement into its ``out``, uint8 (height, width, 3)."""
        last: Placement | None = None
        for placement, out in zip(placements, outs, strict=True):
            if last is None or not placement.scales_like(last):
                layers = [shape.orientation.apply(each) for each in self._scale(frame, shape, placement)]
                last = placement
            crop = placement.crop
            for layer, channels in zip(layers, _CHANNELS[len(layers)], strict=True):
                part = layer[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
                out[:, :, channels] = part[:, ::-1] if placement.flip else part

    def _scale(self, frame: Any, shape: Shape, placement: Placement) -> list[Pixels]:
        """The part of the shown picture that is placed, resized, still oriented as coded.

        Returns:
            uint8: one layer (height, width, 3) of RGB, or three (height, width): R, G and B.
        """
        source = placement.source
        if (source.height, source.width) != (shape.height, shape.width):
            box = shape.orientation.coded_box(source, shape.height, shape.width)
            shown_height, shown_width = shape.orientation.size(shape.height, shape.width)
            frame = self._cutter.cut_even(
                frame, _rescaled(box, frame.height / shown_height, frame.width / shown_width)
            )
        height, width = shape.orientation.size(placement.height, placement.width)
        pix_fmt = frame.format.name
        key = (frame.width, frame.height, pix_fmt, width, height, placement.interpolation)
        scaler = self._scalers.get(key)
        if scaler is None:
            if len(self._scalers) >= 32:
                self._scalers.clear()
            scaler = self._scalers[key] = VideoReformatter()
        in_planes = pix_fmt in _SCALED_IN_PLANES and (width, height) != (frame.width, frame.height)
        target = _PLANES if in_planes else "rgb24"
        how = _INTERPOLATIONS[placement.interpolation]
        scaled = scaler.reformat(frame, width, height, target, interpolation=how, threads=1)
        planes = scaled.planes
        if in_planes:
            return [_pixels(planes[i], (height, width)) for i in (_RED, _GREEN, _BLUE)]
        return [_pixels(planes[0], (height, width, 3))]


class Cutter:
    """Parts of frames, without copying them; keeps a filter per kind of frame and part."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[str, ...], tuple[Graph, Any, Any]] = {}

    def cut_even(self, frame: Any, box: Box) -> Any:
        """A part of a frame; even coordinates, so that colour stays on its pixels."""
        top, left = box.top & ~1, box.left & ~1
        height = min(frame.height - top, box.height + (box.height & 1))
        width = min(frame.width - left, box.width + (box.width & 1))
        return self.cut(frame, Box(top, left, height, width))

    def cut(self, frame: Any, box: Box) -> Any:
        """Exactly this part of a frame; where colour is coarser, it moves by half a pixel at odd edges."""
        source = {
            "video_size": f"{frame.width}x{frame.height}",
            "pix_fmt": str(frame.format.name),
            "colorspace": str(int(frame.colorspace)),
            "range": str(int(frame.color_range)),
        }
        key = (*source.values(), f"{box.width}:{box.height}:{box.left}:{box.top}:exact=1")
        if key not in self._graphs:
            if len(self._graphs) >= 8:
                self._graphs.clear()
            self._graphs[key] = _crop_graph(source, key[-1])
        _, entry, end = self._graphs[key]
        entry.push(frame)
        return end.pull()


@dataclass(frozen=True)
class ContainerCrop:
    """The part of a coded picture that the container says is shown."""

    box: Box
    coded_height: int
    coded_width: int


def crop_frame(frame: Any, crop: ContainerCrop | None, cutter: Cutter) -> Any:
    """The shown part of a frame; one of another size than the container speaks of is left whole."""
    if crop is None or (frame.height, frame.width) != (crop.coded_height, crop.coded_width):
        return frame
    return cutter.cut(frame, crop.box)


def _pixels(plane: Any, shape: tuple[int, ...]) -> Pixels:
    strides = (plane.line_size, 1) if len(shape) == 2 else (plane.line_size, 3, 1)
    view: Pixels = np.ndarray(shape, np.uint8, plane, 0, strides)
    return view


def _rescaled(box: Box, vertical: float, horizontal: float) -> Box:
    """A box of the square-pixel picture in the coded one."""
    top, left = int(box.top * vertical), int(box.left * horizontal)
    return Box(top, left, max(1, round(box.height * vertical)), max(1, round(box.width * horizontal)))


def _crop_graph(source: dict[str, str], part: str) -> tuple[Graph, Any, Any]:
    graph = Graph()
    graph.threads = 1
    entry = graph.add("buffer", time_base="1/1000", pixel_aspect="1/1", **source)
    crop = graph.add("crop", part)
    end = graph.add("buffersink")
    graph.link_nodes(entry, crop, end)
    graph.configure()
    return graph, entry, end

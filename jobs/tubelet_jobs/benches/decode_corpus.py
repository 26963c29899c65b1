"""Videos that ``tubelet bench decode`` makes for itself: moving texture, every codec that matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Recipe:
    """How a video is made. ``repeat``: the coded stream is copied this many times, one after another."""

    name: str
    codec: str
    encoder: str
    width: int
    height: int
    gop: int
    frames: int = 300
    repeat: int = 1

    @property
    def options(self) -> dict[str, str]:
        """Encoder options: B-frames where the codec has them, and a keyframe exactly every ``gop`` frames."""
        if self.encoder == "libx264":
            return {"preset": "veryfast", "bf": "3", "sc_threshold": "0"}
        if self.encoder == "libx265":
            gop = f"keyint={self.gop}:min-keyint={self.gop}:scenecut=0:bframes=3:log-level=none:pools=none"
            return {"preset": "superfast", "x265-params": gop}
        return {"deadline": "realtime", "cpu-used": "6", "b": "800k"}


_X264, _X265, _VPX = ("h264", "libx264"), ("hevc", "libx265"), ("vp9", "libvpx-vp9")

RECIPES = (
    Recipe("h264-340x256-gop250", *_X264, 340, 256, 250),
    Recipe("h264-340x256-gop32", *_X264, 340, 256, 32),
    Recipe("h264-1280x720-gop250", *_X264, 1280, 720, 250),
    Recipe("h264-1280x720-gop32", *_X264, 1280, 720, 32),
    Recipe("hevc-340x256-gop250", *_X265, 340, 256, 250),
    Recipe("vp9-340x256-gop128", *_VPX, 340, 256, 128),
)
LONG = Recipe("h264-340x256-10min", *_X264, 340, 256, 250, frames=500, repeat=36)


def make(recipe: Recipe, folder: Path) -> Path:
    """Encode a video into ``folder``; 30 frames a second, MP4 with its index at the front (WebM for VP9)."""
    path = folder / f"{recipe.name}.{'webm' if recipe.codec == 'vp9' else 'mp4'}"
    once = folder / f"once-{path.name}" if recipe.repeat > 1 else path
    options = {} if recipe.codec == "vp9" else {"movflags": "+faststart"}
    with av.open(str(once), "w", options=options) as container:
        stream: Any = container.add_stream(recipe.encoder, rate=30, options=recipe.options)
        stream.width, stream.height, stream.pix_fmt = recipe.width, recipe.height, "yuv420p"
        stream.codec_context.gop_size = recipe.gop
        stream.codec_context.thread_count = 2
        for number, picture in enumerate(pictures(recipe.width, recipe.height, recipe.frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if recipe.repeat > 1:
        _repeat(once, path, recipe)
        once.unlink()
    return path


def pictures(width: int, height: int, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """A soft texture that drifts, bright tiles across it, a little grain: about what a camera gives."""
    draw = np.random.default_rng(7)
    margin = count + 8
    coarse = np.clip(draw.normal(0, 1, (3, height // 16 + 4, (width + margin) // 16 + 4)), -2, 2)
    back = np.stack([_enlarge(layer, height, width + margin) for layer in coarse], -1)
    texture = (115 + 38 * back).astype(np.uint8)
    # Added without widening: the texture stays far enough from 0 and 255.
    grain = np.clip(draw.normal(0, 2.0, (8, height, width, 1)), -6, 6).astype(np.int8).view(np.uint8)
    side = height // 5
    for number in range(count):
        picture = texture[:, number : number + width] + grain[number % 8]
        for tile in range(4):
            phase = number / 30 * (0.5 + 0.3 * tile) + tile
            left = int((width - side) * (0.5 + 0.45 * np.sin(phase)))
            top = int((height - side) * (0.5 + 0.45 * np.cos(1.3 * phase)))
            part = picture[top : top + side, left : left + side]
            part[...] = part // 3 + np.roll([150, 70, 30], tile).astype(np.uint8)
        yield picture


def _enlarge(layer: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float32]:
    rows, columns = np.linspace(0, layer.shape[0] - 2, height), np.linspace(0, layer.shape[1] - 2, width)
    r, c = rows.astype(int), columns.astype(int)
    dr, dc = (rows - r)[:, None], (columns - c)[None, :]
    top = layer[r][:, c] * (1 - dc) + layer[r][:, c + 1] * dc
    bottom = layer[r + 1][:, c] * (1 - dc) + layer[r + 1][:, c + 1] * dc
    return np.asarray(top * (1 - dr) + bottom * dr, np.float32)


def _repeat(once: Path, path: Path, recipe: Recipe) -> None:
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        with av.open(str(once)) as source:
            stream = out.add_stream_from_template(source.streams.video[0])
        for turn in range(recipe.repeat):
            with av.open(str(once)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        shift = round(turn * recipe.frames * Fraction(1, 30) / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        out.mux(packet)

"""Videos for tests: made here, and the folders of real ones where they are."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from tubelet.video import DecodeError, Frames, Limits, ShortSide, Times, View, decode_views
from tubelet.video.sampling import Clock, Indices

from support import SHARED

Pixels = npt.NDArray[np.uint8]


def pictures(count: int, width: int, height: int) -> Iterator[Pixels]:
    """Pictures that all differ, with motion: a drifting texture, a tile, and the number as brightness of
    a bar.
    """
    draw = np.random.default_rng(3)
    texture = np.repeat(
        np.repeat(draw.integers(60, 180, (height // 8 + 1, width // 8 + count + 1, 3)), 8, 0), 8, 1
    )
    for number in range(count):
        picture = texture[:height, number * 2 : number * 2 + width].astype(np.uint8)
        side = min(height, width) // 4
        left, top = (number * 5) % (width - side), (number * 3) % (height - side)
        picture[top : top + side, left : left + side] = (230, 40, 90)
        picture[: max(2, height // 16), : width // 2] = 20 + (number * 37) % 200
        yield picture


def make_video(
    path: Path,
    *,
    codec: str = "libx264",
    frames: int = 60,
    size: tuple[int, int] = (160, 96),
    gop: int = 24,
    options: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    aspect: Fraction | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode ``frames`` pictures; ``ticks`` are their presentation times in 1/600 s (default: 30 a
    second).
    """
    base = Fraction(1, 30) if ticks is None else Fraction(1, 600)
    ticks = range(frames) if ticks is None else ticks
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for tick, picture in zip(ticks, pictures(frames, width, height), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class Reference:
    """What plain PyAV gives, decoding a stream from its start. ``times_s``: None where frames carry no
    times.
    """

    frames: list[Any]
    times_s: npt.NDArray[np.float64] | None

    def rgb(self, number: int) -> Pixels:
        """A frame as PyAV converts it, as coded (not rotated, pixels as stored)."""
        pixels: Pixels = self.frames[number].to_ndarray(format="rgb24")
        return pixels


def sequential(path: Path | str, stream_index: int | None = None, *, limit: int | None = None) -> Reference:
    """Decode the first ``limit`` frames of a stream with nothing left out."""
    frames: list[Any] = []
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0] if stream_index is None else container.streams[stream_index]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            frames.append(frame)
            if limit is not None and len(frames) >= limit:
                break
        base = stream.time_base
    stamps = [frame.pts for frame in frames]
    if None in stamps or any(a >= b for a, b in pairwise(stamps)):
        return Reference(frames, None)
    return Reference(frames, np.array([float((pts - stamps[0]) * base) for pts in stamps]))


@dataclass(frozen=True)
class Listed:
    """A file of a folder with a MANIFEST.csv, and what plain PyAV does with it."""

    path: Path
    expect: str
    pixels: int = 0


def listed_videos() -> list[Listed]:
    """The files of ``../shared/data/torture`` and of ``TUBELET_VIDEOS``, where there are any."""
    folders = [SHARED / "data" / "torture"]
    if os.environ.get("TUBELET_VIDEOS"):
        folders.append(Path(os.environ["TUBELET_VIDEOS"]))
    found = []
    for folder in folders:
        manifest = folder / "MANIFEST.csv"
        if manifest.is_file():
            with manifest.open(newline="") as file:
                for row in csv.DictReader(file):
                    pixels = int(row.get("width") or 0) * int(row.get("height") or 0)
                    found.append(Listed(folder / row["file"], row["expect"], pixels))
    return [video for video in found if video.path.is_file()]


@dataclass(frozen=True)
class EveryFrame:
    """The rule that takes all frames, or every ``step``-th."""

    step: int = 1

    def pick(self, clock: Clock) -> Indices:
        """All indices of the clock."""
        return np.arange(0, len(clock), self.step, dtype=np.int64)


def alone_equal(
    source: Path | bytes, *, count: int, limits: Limits | None = None, by_index: bool = True
) -> list[str]:
    """What two requests of a video disagree about: ``count`` of its frames asked for alone, some by time, and
    stretches of neighbours, against all frames at once. Repeated last-good frames are left out.

    ``by_index``: a frame's number too must mean the same, not only its time.

    Returns:
        One line per disagreement; none for a video that cannot be used.
    """
    space = ShortSide(32)
    try:
        whole = decode_views(source, [View(EveryFrame(), space)], limits=limits)
    except DecodeError:
        return []
    frames, times_s = whole.clips[0]
    known = dict(zip(times_s.tolist(), frames, strict=True))
    n = len(times_s)
    picked = sorted({round(k * (n - 1) / max(1, count - 1)) for k in range(count)})
    requests: list[Frames | Times] = [Frames((k,)) for k in picked]
    requests += [Frames(tuple(range(k, min(n, k + 24)))) for k in picked[1 :: max(1, count // 4)]]
    requests += [Times((float(times_s[k]),)) for k in picked[:: max(1, count // 4)]]
    wrong = []
    for rule in requests:
        try:
            decoded = decode_views(source, [View(rule, space)], limits=limits)
        except DecodeError as error:
            if whole.error is None:
                wrong.append(f"{rule}: {error}")
            continue
        for time_s, pixels in zip(decoded.clips[0].times_s.tolist(), decoded.clips[0].frames, strict=True):
            if time_s not in known:
                if not by_index:
                    continue  # a frame that damage hides from a larger request
                wrong.append(f"{rule}: a frame at {time_s}")
            elif not np.array_equal(pixels, known[time_s]):
                wrong.append(f"{rule}: another picture at {time_s}")
        if by_index and isinstance(rule, Frames) and decoded.error is None and whole.error is None:
            expected = times_s[list(rule.indices)]
            if not np.array_equal(decoded.clips[0].times_s, expected):
                wrong.append(f"{rule}: other times")
    return wrong

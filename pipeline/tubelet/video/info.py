"""What is known of a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tubelet.video.container import Video
from tubelet.video.picture import Shape
from tubelet.video.sampling import Clock
from tubelet.video.table import PacketTable, codec_name

# Above this a container's frame rate is its clock's tick, not a rate (FLV and old MKV files say 1000).
_MAX_FPS = 480.0
# An hour of keyframes alone at 60 a second has 216,000. A hostile index lists millions, which would fill the
# memory of whoever asked.
_MOST_KEYFRAMES = 250_000
# Spacing of frames may differ by rounding to the container's clock before it counts as variable.
_VFR_TOLERANCE = 0.1


@dataclass(frozen=True)
class VideoInfo:
    """A video's chosen picture track.

    ``width``, ``height``: pixels as shown, after sample aspect ratio and rotation. ``rotation``: degrees
    clockwise from the coded to the shown picture (0, 90, 180, 270). ``fps``: mean rate; None where neither
    frames nor header tell.
    ``vfr``: frames are not evenly spaced (False where unknown). ``frames``, ``keyframes_s``,
    ``duration_s``: None where only decoding or reading the whole object tells; ``keyframes_s`` also where
    there are more than 250,000, or more than the object has bytes. ``keyframes_s`` and
    ``duration_s`` count from the first presented frame, which lies at ``start_s`` on the container's clock.
    ``size_bytes``: of the object.
    """

    codec: str
    width: int
    height: int
    rotation: int
    fps: float | None
    vfr: bool
    frames: int | None
    duration_s: float | None
    start_s: float
    keyframes_s: tuple[float, ...] | None
    pix_fmt: str
    stream_index: int
    size_bytes: int | None
    container: str
    coded_width: int
    coded_height: int
    sample_aspect: float
    mirrored: bool
    interlaced: bool
    color_space: int
    color_range: int
    still: bool = False
    """One picture in a file of a kind made for pictures (JPEG, PNG, WebP, AVIF, HEIC, a GIF of one frame):
    no video. A film of one frame is none."""


class FrameFormat(NamedTuple):
    """What a frame says of its pixels.

    Kept in place of the frame: a decoder whose frame is held writes the next one into other memory, and where
    damage leaves a picture unfinished, what lay there before shows.
    """

    pix_fmt: str
    width: int
    height: int
    interlaced: bool
    color_space: int
    color_range: int

    @classmethod
    def of(cls, frame: Any) -> FrameFormat:
        """Of a decoded frame."""
        return cls(
            pix_fmt=str(frame.format.name),
            width=int(frame.width),
            height=int(frame.height),
            interlaced=bool(frame.interlaced_frame),
            color_space=int(frame.colorspace),
            color_range=int(frame.color_range),
        )


def describe(
    video: Video,
    *,
    table: PacketTable | None,
    clock: Clock | None,
    shape: Shape,
    frame: FrameFormat,
    start_s: float,
    still: bool = False,
) -> VideoInfo:
    """Sum up an open video from a frame of it, and from its table and clock where they are known."""
    fps, vfr = _rate(video, clock)
    return VideoInfo(
        codec=codec_name(video),
        width=shape.width,
        height=shape.height,
        rotation=shape.orientation.rotation,
        fps=fps,
        vfr=vfr,
        frames=None if clock is None else len(clock),
        duration_s=_duration_s(video, table) if clock is None else clock.end_s,
        start_s=start_s,
        keyframes_s=keyframes_s(table, video.source.size_bytes),
        pix_fmt=frame.pix_fmt,
        stream_index=int(video.stream.index),
        size_bytes=video.source.size_bytes,
        container=str(video.container.format.name),
        coded_width=video.coded_size[1] or frame.width,
        coded_height=video.coded_size[0] or frame.height,
        sample_aspect=float(video.sample_aspect),
        mirrored=shape.orientation.mirrored,
        interlaced=frame.interlaced,
        color_space=frame.color_space,
        color_range=frame.color_range,
        still=still,
    )


def keyframes_s(table: PacketTable | None, size_bytes: int) -> tuple[float, ...] | None:
    """The times of an object of ``size_bytes`` that are worth keeping; None: unknown, or too many."""
    if table is None or not table.trusted or int(table.key.sum()) > min(_MOST_KEYFRAMES, size_bytes):
        return None
    return table.keyframes_s()


def _rate(video: Video, clock: Clock | None) -> tuple[float | None, bool]:
    if clock is not None and len(clock) > 1:
        gaps = np.diff(clock.times_s)
        mean = float(clock.times_s[-1]) / len(gaps)
        tick = float(video.time_base)
        if mean > 0:
            return 1 / mean, bool(
                (np.abs(gaps - np.median(gaps)) > max(_VFR_TOLERANCE * mean, 1.5 * tick)).any()
            )
    for rate in (video.stream.average_rate, video.stream.guessed_rate):
        if rate and 0 < rate <= _MAX_FPS:
            return float(rate), False
    return None, False


def _duration_s(video: Video, table: PacketTable | None) -> float | None:
    if table is not None and (table.stepped or table.indexed):  # the header knows of one part, or of no edit
        return table.clock().end_s
    if video.stream.duration and video.stream.duration > 0:
        return float(video.stream.duration * video.time_base)
    if video.container.duration and video.container.duration > 0:
        return float(video.container.duration / 1_000_000)
    return None

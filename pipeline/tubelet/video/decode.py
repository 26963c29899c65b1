"""From a source to clips, in this process.

See :class:`tubelet.video.Sandbox` for files that are not trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tubelet.video.buffers import Allocate, ClipBuffers, shown_shape
from tubelet.video.clock import clock_of, ticks_of
from tubelet.video.container import Video, open_video
from tubelet.video.content import Content
from tubelet.video.engine import DamageError, IndexedDecoder, SequentialDecoder, TableMismatchError
from tubelet.video.errors import ClipError, DecodeError
from tubelet.video.framing import ShortSide
from tubelet.video.info import FrameFormat, VideoInfo, describe
from tubelet.video.limits import Budget, Limits
from tubelet.video.picture import Cutter, Pixels, crop_frame
from tubelet.video.sampling import Clock, Frames, Indices, TimeRule, Times
from tubelet.video.source import Source
from tubelet.video.table import PacketTable, build_table
from tubelet.video.views import View

MakeBuffers = Callable[[Video, Sequence[View], Sequence[Indices], Clock], ClipBuffers]
"""Where frames go: of a video, for views that pick these frames of the ones that there are."""


class Clip(NamedTuple):
    """Frames of a video, and when they are presented.

    ``frames``: uint8 (T, H, W, 3), RGB. ``times_s``: float64 (T,), when each was presented, in seconds from
    the first presented frame of the video.
    """

    frames: Pixels
    times_s: npt.NDArray[np.float64]


@dataclass
class Decoded:
    """One clip per view.

    ``error`` has the code ``partial`` where frames that do not decode were replaced by the last good one
    before them.
    """

    clips: list[Clip]
    info: VideoInfo
    error: DecodeError | None = None


def decode_clip(
    source: Source,
    frames: Sequence[int] | None = None,
    times_s: Sequence[float] | None = None,
    short_side: int | None = None,
    crop: int | None = None,
    *,
    window_s: tuple[float, float] | None = None,
    limits: Limits | None = None,
) -> Clip:
    """Decode given frames of a video.

    Args:
        source: a path, bytes, an open binary file, or a callable that opens one.
        frames: indices in presentation order, any order, repeats allowed.
        times_s: or seconds from the first presented frame; each takes the last frame presented at or before
            it.
        short_side: resize the shorter side to this many pixels.
        crop: then cut a square of this many pixels from the centre.
        window_s: count ``frames`` from the first frame of this window of the video.

    Returns:
        (uint8 (T, H, W, 3), float64 (T,)): right side up, in RGB, and the presentation times of the frames
        taken.

    Raises:
        DecodeError: with its ``code``; also when only a part of the frames decodes (``partial``).
        ValueError: neither or both of ``frames`` and ``times_s``, or a frame that does not exist.
    """
    if (frames is None) == (times_s is None):
        raise ValueError("give frames or times_s")
    rule: TimeRule = Times(tuple(times_s or ())) if frames is None else Frames(tuple(frames))
    decoded = decode_views(
        source, [View(rule, ShortSide(short_side, crop))], window_s=window_s, limits=limits
    )
    if decoded.error is not None:
        raise decoded.error
    return decoded.clips[0]


def decode_views(
    source: Source,
    views: Sequence[View],
    *,
    window_s: tuple[float, float] | None = None,
    limits: Limits | None = None,
    allocate: Allocate | None = None,
) -> Decoded:
    """Decode several clips of a video in one pass.

    Args:
        source: a path, bytes, an open binary file, or a callable that opens one.
        views: which frames, and which part of them.
        window_s: only frames presented in this window of the video exist for the time rules (their times
            still count from the first frame of the video).
        limits: budgets; ``memory_bytes`` binds the clips only, unless a :class:`Sandbox` decodes.
        allocate: gives the memory that all clips share (``np.empty`` by default).

    Raises:
        DecodeError: the video cannot be used, or fewer than half of the wanted frames decode.
        ValueError: a rule asks for a frame that does not exist.
    """
    if not views:
        raise ValueError("no views asked for")
    make = partial(ClipBuffers, allocate=allocate or _new_memory)
    return decode_into(make, source, views, window_s=window_s, limits=limits)


def decode_into(
    make: MakeBuffers,
    source: Source,
    views: Sequence[View],
    *,
    window_s: tuple[float, float] | None = None,
    limits: Limits | None = None,
) -> Decoded:
    """As :func:`decode_views`, into buffers that ``make`` makes, anew each time that decoding begins.

    Raises:
        DecodeError: as :func:`decode_views`.
    """
    with _typed_errors(), open_video(source, Budget(limits or Limits())) as video:
        return _Pass(video, list(views), window_s, make).run()


def probe(source: Source, *, deadline_s: float | None = None, limits: Limits | None = None) -> VideoInfo:
    """Look at a video: its index, its first frame, and all its packets where only they tell how long it is.

    All packets are read of what is at hand, and of what may consist of several recordings (MPEG-TS, MPEG-PS,
    Ogg, joined Matroska), whose headers tell of one.

    Raises:
        DecodeError: why the video cannot be used.
    """
    limits = limits or Limits()
    if deadline_s is not None:
        limits = replace(limits, deadline_s=deadline_s)
    with _typed_errors(), open_video(source, Budget(limits)) as video:
        table = build_table(video, scan=video.source.at_hand or video.is_picture_file or video.may_be_joined)
        if table is not None and not table.indexed and table.packets is None:
            video.reopen()
        decoder = SequentialDecoder(video, table)
        frame = next(decoder.frames(), None)
        if frame is None:
            raise _no_frame(video, decoder.errors)
        video.budget.check_picture(frame.width, frame.height)
        frame = crop_frame(frame, video.crop, Cutter())
        clock = table.clock() if table is not None and table.trusted and len(table.shown) else None
        start_s = float(ticks_of([(frame.pts, frame.dts)], video)[0] * video.time_base)
        shape = shown_shape(video, frame)
        return describe(
            video,
            table=table,
            clock=clock,
            shape=shape,
            frame=FrameFormat.of(frame),
            start_s=start_s,
            still=video.is_still(None if table is None else len(table.shown)),
        )


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Turns whatever a file makes this library or FFmpeg raise into a :class:`DecodeError`.

    It is a property of the file: a row, not the end of a job.
    """
    try:
        yield
    except (DecodeError, ClipError):
        raise
    except MemoryError as error:
        raise DecodeError("out_of_memory", "no memory left (--memory)") from error
    except TypeError:
        raise
    except Exception as error:
        raise DecodeError("decode_error", f"{type(error).__name__}: {error}") from error


def _new_memory(size_bytes: int) -> Pixels:
    return np.empty(size_bytes, np.uint8)


def _no_frame(video: Video, errors: int) -> DecodeError:
    content = Content.STILL if video.is_still(1) else None
    if errors or video.broken:
        reason = video.broken or f"{errors} packets do not decode"
        return DecodeError("decode_error", f"no frame decodes ({reason})", content)
    return DecodeError("zero_frames", "holds no frame", content)


class _Pass:
    """One request: choose frames, decode them, repair what is missing."""

    def __init__(
        self, video: Video, views: list[View], window_s: tuple[float, float] | None, make: MakeBuffers
    ) -> None:
        self._video = video
        self._views = views
        self._window_s = window_s
        self._make = make
        self._indexed_decoder: IndexedDecoder | None = None

    def run(self) -> Decoded:
        table = build_table(self._video)
        assert table is not None
        if table.trusted and len(table.shown):
            for linear in (False, True):
                try:
                    return self._indexed(table, linear)
                except (DamageError, TableMismatchError):
                    self._restart()
        elif table.packets is None:
            self._restart()
        return self._sequential(table)

    def _indexed(self, table: PacketTable, linear: bool) -> Decoded:
        clock = table.clock()
        picks = self._pick(clock)
        buffers, decoder = self._decode_indexed(table, picks, linear)
        error = None
        missing = set(buffers.wanted.tolist()) - decoder.taken
        if missing:
            error = self._partial(picks, decoder)
            picks = [_replace(pick, decoder.taken) for pick in picks]
            self._restart()
            buffers, decoder = self._decode_indexed(table, picks, linear=True)
        start_s = float(int(table.pts[table.shown[0]] + decoder.shift) * table.time_base)
        return self._finish(buffers, picks=picks, clock=clock, table=table, start_s=start_s, error=error)

    def _decode_indexed(
        self, table: PacketTable, picks: list[Indices], linear: bool
    ) -> tuple[ClipBuffers, IndexedDecoder]:
        buffers = self._make(self._video, self._views, picks, self._seen(table.clock()))
        decoder = IndexedDecoder(self._video, table, buffers.take, linear=linear)
        self._indexed_decoder = decoder
        decoder.decode(buffers.wanted)
        return buffers, decoder

    def _partial(self, picks: list[Indices], decoder: IndexedDecoder) -> DecodeError:
        """The error to report along with the clips; raised when too little is there for clips."""
        if not decoder.taken and not self._video.budget.frames:
            raise _no_frame(self._video, decoder.errors)
        total = sum(len(pick) for pick in picks)
        good = sum(np.isin(pick, list(decoder.taken)).sum() for pick in picks)
        error = DecodeError("partial", f"{good} of {total} wanted frames decode")
        if 2 * good < total:
            raise error
        return error

    def _sequential(self, table: PacketTable) -> Decoded:
        """Decode everything to learn which frames there are, then again up to the last one wanted."""
        decoder = SequentialDecoder(self._video, table)
        stamps = [(frame.pts, frame.dts) for frame in decoder.frames()]
        if not stamps:
            raise _no_frame(self._video, decoder.errors)
        ticks = ticks_of(stamps, self._video, stepped=table.stepped)
        # A request that meets no damage counts times from the first packet, though that may give no frame.
        zero = int(ticks[0])
        if self._indexed_decoder is not None and self._indexed_decoder.met_damage:
            zero = min(zero, int(table.pts[table.shown[0]] + self._indexed_decoder.shift))
        clock = clock_of(ticks, table.last_duration, self._video.time_base, zero=zero)
        picks = self._pick(clock)
        buffers = self._make(self._video, self._views, picks, self._seen(clock))
        broken = decoder.lost > 0 or self._video.broken is not None
        wanted = set(buffers.wanted.tolist())
        self._restart()
        for number, frame in enumerate(SequentialDecoder(self._video, table).frames()):
            if number in wanted:
                buffers.take(number, frame)
                wanted.discard(number)
                if not wanted:
                    break
        error = DecodeError("partial", _some(decoder.lost, len(stamps))) if broken else None
        start_s = float(zero * self._video.time_base)
        return self._finish(buffers, picks=picks, clock=clock, table=table, start_s=start_s, error=error)

    def _restart(self) -> None:
        """Decoders keep more than flushing resets: which encoder's faults to allow for, whether to wait."""
        self._video.budget.begin_pass()
        self._video.reopen()

    def _pick(self, clock: Clock) -> list[Indices]:
        seen = self._seen(clock)
        return [view.time.pick(seen) + seen.first for view in self._views]

    def _seen(self, clock: Clock) -> Clock:
        return clock if self._window_s is None else clock.window(*self._window_s)

    def _finish(
        self,
        buffers: ClipBuffers,
        *,
        picks: list[Indices],
        clock: Clock,
        table: PacketTable,
        start_s: float,
        error: DecodeError | None,
    ) -> Decoded:
        assert buffers.shape is not None
        assert buffers.frame is not None
        info = describe(
            self._video,
            table=table,
            clock=clock,
            shape=buffers.shape,
            frame=buffers.frame,
            start_s=start_s,
            still=self._video.is_still(len(table.shown)),
        )
        clips = [Clip(c, clock.times_s[p]) for c, p in zip(buffers.clips, picks, strict=True)]
        return Decoded(clips, info, error)


def _some(lost: int, frames: int) -> str:
    reason = f"{lost} packets do not decode" if lost else "breaks off"
    return f"{reason}: {frames} frames decode"


def _replace(pick: Indices, taken: set[int]) -> Indices:
    """Each frame that does not decode becomes the last one before it that does (or the first of all)."""
    good = np.array(sorted(taken), np.int64)
    return good[np.maximum(np.searchsorted(good, pick, side="right") - 1, 0)]

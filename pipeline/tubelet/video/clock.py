"""When the frames of a stream are presented: from the times of packets or of frames, to rising times.

Times are in the stream's ``time_base`` units ("ticks") until :func:`clock_of` makes seconds of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tubelet.video.container import Video
from tubelet.video.sampling import Clock, Indices

# Steps of a clock, as FFmpeg's program tells them from the disorder of damaged streams.
_FALL_S = Fraction(1, 10)
_JUMP_S = Fraction(10)

# The largest part of frames that damage may have made late; more means that times are mixed up.
_MOST_LATE = 0.1


def clock_of(ticks: Indices, last_duration: int, time_base: Fraction, *, zero: int | None = None) -> Clock:
    """The clock of frames presented at ``ticks`` (ascending, in ``time_base`` units).

    ``zero``: from which times count, where that is not the first of these frames.
    """
    times_s = (ticks - (ticks[:1] if zero is None else zero)) * time_base.numerator / time_base.denominator
    if len(ticks) > 1 and last_duration <= 0:
        last_duration = int(ticks[-1] - ticks[-2])
    end_s = float(times_s[-1]) + max(0.0, float(last_duration * time_base)) if len(ticks) else 0.0
    return Clock(times_s, end_s)


def clock_steps(ticks: Sequence[int | None], time_base: Fraction, *, jumps: bool) -> npt.NDArray[np.bool_]:
    """Where a clock was set back or ahead, by decode times: as FFmpeg's own program finds it.

    Args:
        ticks: decode times in decode order, in ``time_base`` units.
        time_base: seconds per unit.
        jumps: whether a leap ahead of more than ten seconds counts, beside a fall of more than a tenth.

    Returns:
        bool (len(ticks),): packets that come right after a step.
    """
    steps = np.zeros(len(ticks), np.bool_)
    known = np.array([i for i, tick in enumerate(ticks) if tick is not None], np.int64)
    moves = np.diff(np.array([tick for tick in ticks if tick is not None], np.int64))
    steps[known[1:]] = moves < -round(_FALL_S / time_base)
    if jumps:
        steps[known[1:]] |= moves > round(_JUMP_S / time_base)
    return steps


def joined(pts: Indices, steps: npt.NDArray[np.bool_]) -> Indices:
    """Presentation times that go on after each step of the clock, one usual frame after the last."""
    part = np.cumsum(steps)
    rising = np.sort(pts[part == 0])
    step = max(1, int(np.median(np.diff(rising)))) if len(rising) > 1 else 1
    moved, end = pts.copy(), int(pts[part == 0].max()) + step
    for number in range(1, int(part[-1]) + 1):
        inside = part == number
        moved[inside] += end - int(pts[inside].min())
        end = int(moved[inside].max()) + step
    return moved


def ticks_of(stamps: list[tuple[int | None, int | None]], video: Video, *, stepped: bool = False) -> Indices:
    """Presentation times of frames in the order in which the decoder gives them, rising.

    Some containers (AVI) know decode times only, some know none, so the first of these that is complete is
    taken: presentation times, decode times, an even spacing.

    Args:
        stamps: presentation and decode time of each frame.
        video: the stream they are of.
        stepped: the clock was set back or ahead; from each step on it goes on where it was.
    """
    for which in (0, 1):
        known = [stamp[which] for stamp in stamps]
        if None in known or not (stepped or len(set(known)) == len(known)):
            continue
        ticks = np.array(known, np.int64)
        return _continued(ticks, video) if stepped else _in_order(ticks)
    rate = video.stream.average_rate or video.stream.guessed_rate or 25
    step = max(1, round(1 / (rate * video.time_base)))
    begin = min((tick for tick, _ in stamps if tick is not None), default=0)
    return begin + step * np.arange(len(stamps), dtype=np.int64)


def _in_order(ticks: Indices) -> Indices:
    """Rising times of frames whose order may be another than their times say.

    Where most times are in order, the few that are not belong to frames that damage made late: each is
    presented right after the one before it, and no other frame gets its time. Else the order of the frames
    is right and their times are mixed up.
    """
    late = int((np.maximum.accumulate(ticks) > ticks).sum())
    if not late or late > _MOST_LATE * len(ticks):
        return np.sort(ticks)
    numbers = np.arange(len(ticks))
    return np.asarray(np.maximum.accumulate(ticks - numbers) + numbers, np.int64)


def _continued(ticks: Indices, video: Video) -> Indices:
    """Rising times of frames in presentation order, whose clock was set back or ahead.

    Each fall, and each leap of a clock that may leap, becomes the usual step.
    """
    moves = np.diff(ticks)
    odd = moves <= 0
    if video.clock_may_jump:
        odd |= moves > round(_JUMP_S / video.time_base)
    usual = moves[~odd]
    moves[odd] = max(1, int(np.median(usual))) if len(usual) else 1
    return np.concatenate([ticks[:1], ticks[:1] + np.cumsum(moves)])

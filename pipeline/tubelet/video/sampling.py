"""Which frames make a clip: rules over presentation order or time, never ``fps x index``.

A rule sees the :class:`Clock` of the frames that exist and returns their indices. Dense rules follow DMVR,
the reader of the paper's code (dmvr/processors.py: sample_sequence, sample_linspace_sequence): a video
shorter than the clip is looped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tubelet.video.errors import ClipError

Indices = npt.NDArray[np.int64]

# Presentation times are rationals rounded to doubles: what lies within a microsecond is the same time.
TIME_TOLERANCE_S = 1e-6


@dataclass(frozen=True)
class Clock:
    """Presentation times of the frames of a video, or of a window of it.

    ``times_s``: float64 (N,), ascending, seconds from the video's first presented frame. ``end_s``: when
    the last frame ends. ``first``: index in the video of ``times_s[0]``.
    """

    times_s: npt.NDArray[np.float64]
    end_s: float
    first: int = 0

    def __len__(self) -> int:
        return len(self.times_s)

    def at(self, times_s: npt.ArrayLike) -> Indices:
        """The last frame presented at or before each time.

        Args:
            times_s: (T,), seconds from the video's first presented frame.

        Returns:
            int64 (T,): indices within the clock; the first or last frame for times beyond the ends.
        """
        found = np.searchsorted(self.times_s, np.asarray(times_s) + TIME_TOLERANCE_S, side="right") - 1
        return np.clip(found, 0, len(self.times_s) - 1).astype(np.int64)

    def window(self, start_s: float, end_s: float) -> Clock:
        """The frames presented in ``[start_s, end_s)``.

        Where there are none, the one shown at ``start_s``.
        """
        lo, hi = np.searchsorted(self.times_s, [start_s - TIME_TOLERANCE_S, end_s - TIME_TOLERANCE_S])
        if lo >= hi:
            lo = int(self.at([start_s])[0])
            hi = lo + 1
        stop_s = self.end_s if hi == len(self.times_s) else min(self.end_s, float(self.times_s[hi]))
        return Clock(self.times_s[lo:hi], stop_s, self.first + int(lo))


class Offset(Protocol):
    """Where a clip begins."""

    def index(self, length: int, frames: int, stride: int) -> int:
        """First frame of a clip of ``frames`` at ``stride`` among ``length`` frames."""

    def fraction(self) -> float:
        """Place within the room that there is, 0 to 1."""


@dataclass(frozen=True)
class Middle:
    """The clip in the middle (the paper's validation clip)."""

    def index(self, length: int, frames: int, stride: int) -> int:
        """First frame of the centred clip; 0 where the video is too short."""
        return max(0, (length - frames * stride) // 2)

    def fraction(self) -> float:
        """Half of the room."""
        return 0.5


@dataclass(frozen=True)
class Linspace:
    """View ``k`` of ``n`` evenly spread clips (the paper's test clips)."""

    k: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.k < self.n:
            raise ValueError(f"view {self.k} of {self.n} does not exist")

    def index(self, length: int, frames: int, stride: int) -> int:
        """First frame, ``k / (n - 1)`` of the room, rounded down; 0 where the video is too short."""
        room = max(0, length - frames * stride)
        return room * self.k // max(1, self.n - 1)

    def fraction(self) -> float:
        """``k / (n - 1)``; 0 for a single clip."""
        return self.k / max(1, self.n - 1)


@dataclass(frozen=True)
class Random:
    """A training clip: ``u`` in [0, 1) is the random number, so that the sample is a function of its seed."""

    u: float

    def __post_init__(self) -> None:
        if not 0 <= self.u < 1:
            raise ValueError(f"u must lie in [0, 1), given {self.u!r}")

    def index(self, length: int, frames: int, stride: int) -> int:
        """First frame, even over all from which the clip fits; 0 where the video is too short."""
        return min(int(self.u * max(length - (frames - 1) * stride, 1)), length - 1)

    def fraction(self) -> float:
        """The random number itself."""
        return self.u


AnyOffset = Middle | Linspace | Random


class TimeRule(Protocol):
    """Picks frames: indices within the clock, in clip order."""

    def pick(self, clock: Clock) -> Indices:
        """int64 (T,), each in ``[0, len(clock))``."""


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, given {value!r}")


@dataclass(frozen=True)
class Uniform:
    """One frame from each of ``frames`` equal segments of the whole video, in presentation order.

    ``offset`` says which frame of a segment: its middle, the middle of the k-th of n parts, or the part at u.
    """

    frames: int
    offset: AnyOffset = field(default_factory=Middle)

    def __post_init__(self) -> None:
        _positive(frames=self.frames)

    def pick(self, clock: Clock) -> Indices:
        """int64 (frames,), ascending; with repeats where the video has fewer frames."""
        i = np.arange(self.frames, dtype=np.int64)
        n = len(clock)
        if isinstance(self.offset, Random):
            return np.minimum(((i + self.offset.u) * n / self.frames).astype(np.int64), n - 1)
        k, parts = (self.offset.k, self.offset.n) if isinstance(self.offset, Linspace) else (0, 1)
        return (2 * parts * i + 2 * k + 1) * n // (2 * parts * self.frames)


@dataclass(frozen=True)
class Dense:
    """``frames`` frames, every ``stride``-th in presentation order, from ``offset``.

    Looped when the video is too short.
    """

    frames: int
    stride: int = 1
    offset: AnyOffset = field(default_factory=Middle)

    def __post_init__(self) -> None:
        _positive(frames=self.frames, stride=self.stride)

    def pick(self, clock: Clock) -> Indices:
        """int64 (frames,), ``stride`` apart, modulo the number of frames that there are."""
        start = self.offset.index(len(clock), self.frames, self.stride)
        return (start + self.stride * np.arange(self.frames, dtype=np.int64)) % len(clock)


@dataclass(frozen=True)
class AtFps:
    """``frames`` frames, ``fps`` per second of presentation time, from ``offset``.

    Looped when the video is too short.
    """

    frames: int
    fps: float
    offset: AnyOffset = field(default_factory=Middle)

    def __post_init__(self) -> None:
        _positive(frames=self.frames, fps=self.fps)

    def pick(self, clock: Clock) -> Indices:
        """int64 (frames,): what is shown at times ``1 / fps`` seconds apart, modulo the duration."""
        begin_s = float(clock.times_s[0])
        duration_s = max(clock.end_s - begin_s, TIME_TOLERANCE_S)
        clip_s = self.frames - 1 if isinstance(self.offset, Random) else self.frames
        room_s = max(0.0, duration_s - clip_s / self.fps)
        start_s = room_s * self.offset.fraction()
        if room_s > 0:
            # A clip that fits does not loop, however near to the end it was drawn.
            last_s = duration_s - (self.frames - 1) / self.fps - TIME_TOLERANCE_S
            start_s = min(start_s, max(0.0, last_s))
        times_s = start_s + np.arange(self.frames) / self.fps
        # Without the tolerance a time that equals the duration but for rounding would not loop.
        looped_s = np.mod(times_s + TIME_TOLERANCE_S / 2, duration_s)
        return clock.at(begin_s + looped_s)


@dataclass(frozen=True)
class Frames:
    """Frames by index in presentation order (within the window, where there is one)."""

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", tuple(int(i) for i in self.indices))
        if not self.indices or min(self.indices) < 0:
            raise ValueError(f"frames must be indices from 0, given {self.indices!r}")

    def pick(self, clock: Clock) -> Indices:
        """int64 (T,), the indices as given.

        Raises:
            ClipError: there is no such frame.
        """
        if max(self.indices) >= len(clock):
            raise ClipError(f"frame {max(self.indices)} asked for, but there are {len(clock)} frames")
        return np.asarray(self.indices, dtype=np.int64)


@dataclass(frozen=True)
class Times:
    """The frames shown at the given times, in seconds from the video's first presented frame."""

    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times_s", tuple(float(t) for t in self.times_s))
        if not self.times_s or not np.isfinite(self.times_s).all():
            raise ValueError(f"times_s must be finite numbers, given {self.times_s!r}")

    def pick(self, clock: Clock) -> Indices:
        """int64 (T,), the last frame presented at or before each time."""
        return clock.at(self.times_s)

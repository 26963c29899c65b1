"""Budgets that no file may exceed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tubelet.video.errors import DecodeError


@dataclass(frozen=True)
class Limits:
    """What one request may cost. Everything but ``memory_bytes`` also holds without the sandbox."""

    deadline_s: float = 60.0
    """Wall-clock seconds per request, fetching included: a hang costs one row."""
    memory_bytes: int = 2 << 30
    """Bytes of address space that the child may add to what it needs to start: stops memory bombs."""
    max_frames: int = 100_000
    """Frames really decoded per request: stops an hour of black in a kilobyte. Where a video is looked
    through once to count its frames and again to take the wanted ones, each frame counts once. 100,000 are 66
    minutes at 25 per second."""
    max_pixels: int = 1 << 26
    """Pixels per frame (8K has 33 million): stops pictures that fill the memory alone."""
    max_object_bytes: int = 1 << 40
    """Size of the object in bytes."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "memory_bytes", "max_frames", "max_pixels", "max_object_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, given {getattr(self, name)!r}")


class Budget:
    """What is left of the limits while one request runs."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.frames = 0
        self.end_s = time.monotonic() + limits.deadline_s

    def begin_pass(self) -> None:
        """The same packets are decoded again: frames are counted anew, time goes on."""
        self.frames = 0

    def check_time(self) -> None:
        """Hold the request to its deadline.

        Raises:
            DecodeError: ``timeout``, when the deadline has passed.
        """
        if time.monotonic() > self.end_s:
            raise DecodeError("timeout", f"not done after {self.limits.deadline_s:g} s (--deadline)")

    def count_frames(self, count: int) -> None:
        """Charge decoded frames.

        Raises:
            DecodeError: ``timeout`` or ``too_large``.
        """
        self.frames += count
        if self.frames > self.limits.max_frames:
            raise DecodeError(
                "too_large", f"more than {self.limits.max_frames} frames to decode (--max-frames)"
            )
        if time.monotonic() > self.end_s:
            self.check_time()

    def check_picture(self, width: int, height: int) -> None:
        """Hold a frame of ``width x height`` to the pixels allowed.

        Raises:
            DecodeError: ``too_large``, when it has more.
        """
        if width * height > self.limits.max_pixels:
            raise DecodeError(
                "too_large", f"{width}x{height} is over {self.limits.max_pixels} pixels a frame"
            )

    def check_object(self, size_bytes: int) -> None:
        """Hold an object to the bytes allowed.

        Raises:
            DecodeError: ``too_large``, when it has more.
        """
        if size_bytes > self.limits.max_object_bytes:
            raise DecodeError("too_large", f"{size_bytes} bytes, over {self.limits.max_object_bytes}")

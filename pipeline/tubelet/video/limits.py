"""Budgets that no file may exceed."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from tubelet.video.errors import DecodeError

# What decoding a 4K video takes: where a core's share is less, memory is counted out to more cores than are
# in use, as in a container whose processors are not limited.
_LEAST_SHARE_BYTES = 512 << 20


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
    sandbox: Literal["auto", "required"] = "auto"
    """``auto``: the child is contained as far as the kernel allows, and what lacks is logged.
    ``required``: it does not start where a layer lacks."""
    fit_memory: bool = True
    """On a machine, or in a cgroup, whose memory per core is less than ``memory_bytes``: that much only, or
    what a 4K video takes if that is more."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "memory_bytes", "max_frames", "max_pixels", "max_object_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, given {getattr(self, name)!r}")
        if self.sandbox not in ("auto", "required"):
            raise ValueError(f"sandbox must be auto or required, given {self.sandbox!r}")

    def here(self) -> Limits:
        """As they are for a process on this machine."""
        memory_bytes = _memory_bytes() if self.fit_memory else 0
        if not memory_bytes:
            return self
        share = max(_LEAST_SHARE_BYTES, int(memory_bytes / _cores()))
        return replace(self, memory_bytes=min(share, self.memory_bytes))


def _cores() -> float:
    """Those that this process, or the cgroup that it is in, may use."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
        quota, period = file.read().split()
        return max(1.0, min(cores, int(quota) / int(period)))
    return cores


def _memory_bytes() -> int:
    """What the machine, or the cgroup that this process is in, has; 0 where it does not say."""
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            found.append(int(file.read()))
    return min(found, default=0)


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

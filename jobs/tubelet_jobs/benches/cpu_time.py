"""Processor time of this process and all that it starts, Ray's workers and decoder processes among them."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import numpy as np
import psutil

_EVERY_S = 0.25


class CpuMeter:
    """Looks at the tree of processes from time to time, so that those that end meanwhile count too.

    What a process does after the last look at it is lost: a quarter of a second.
    """

    def __init__(self) -> None:
        self._used_s: dict[tuple[int, float], float] = {}
        self._series: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu-meter", daemon=True)

    def __enter__(self) -> CpuMeter:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def seconds(self, since_s: float = float("-inf")) -> float:
        """Processor-seconds of the time inside, or of that after the monotonic time ``since_s``."""
        times_s, used_s = zip(*self._series, strict=True)
        return float(used_s[-1] - np.interp(since_s, times_s, used_s))

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        here = psutil.Process()
        for process in (here, *here.children(recursive=True)):
            try:
                times, name = process.cpu_times(), (process.pid, process.create_time())
            except psutil.NoSuchProcess:
                continue
            self._used_s[name] = times.user + times.system
        self._series.append((time.monotonic(), sum(self._used_s.values())))

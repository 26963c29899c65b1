"""Progress of long jobs on stderr: a live bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

RATE_OVER_S = 60.0


class ProgressLine:
    """Counts done of total and shows rate, time left and named figures (errors, loss, ...).

    Use as a context manager; call :meth:`advance` from one thread.
    """

    def __init__(self, title: str, total: int | None, unit: str, *, every_s: float = 5.0) -> None:
        self.title, self.total, self.unit, self.every_s = title, total, unit, every_s
        self.done = 0
        self._figures: dict[str, str] = {}
        self._printed_s = time.monotonic()
        # How far it was at which moment: the first one, and those of the last minute.
        self._moments: deque[tuple[float, int]] = deque([(self._printed_s, 0)])
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print()

    @property
    def rate(self) -> float:
        """Units per second over the last minute (or since the start, or since ``done`` was set back)."""
        now_s = time.monotonic()
        while len(self._moments) > 1 and self._moments[1][0] <= now_s - RATE_OVER_S:
            self._moments.popleft()
        since_s, before = self._moments[0]
        return max(self.done - before, 0) / max(now_s - since_s, 1e-9)

    def restart(self, done: int) -> None:
        """Go on at ``done``: what was counted before says nothing of the rate from now on."""
        self.done = done
        self._moments = deque([(time.monotonic(), done)])

    def advance(self, count: int = 1, **figures: float | int | str) -> None:
        """``count`` more are done; ``figures`` replace the ones shown before under the same names."""
        self.done += count
        now_s = time.monotonic()
        if now_s - self._moments[-1][0] >= 1.0:
            self._moments.append((now_s, self.done))
        for name, value in figures.items():
            self._figures[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note())
        elif time.monotonic() - self._printed_s >= self.every_s:
            self._print()

    def _note(self) -> str:
        parts = [f"{self.rate:.1f} {self.unit}/s"]
        if self.total and self.done and self.done < self.total:
            if self.rate > 0:
                parts.append(f"{duration((self.total - self.done) / self.rate)} left")
            else:
                parts.append("nothing done in the last minute")
        return ", ".join(parts + [f"{name} {value}" for name, value in self._figures.items()])

    def _print(self) -> None:
        self._printed_s = time.monotonic()
        total = "" if self.total is None else f"/{self.total}"
        print(f"{self.title}: {self.done}{total} {self.unit}, {self._note()}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 5 h``: as exactly as an estimate deserves."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"

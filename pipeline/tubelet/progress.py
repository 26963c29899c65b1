"""Progress of long jobs on stderr: a live bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class ProgressLine:
    """Counts done of total and shows rate, time left and named figures (errors, loss, ...).

    Use as a context manager; call :meth:`advance` from one thread.
    """

    def __init__(self, title: str, total: int | None, unit: str, *, every_s: float = 5.0) -> None:
        self.title, self.total, self.unit, self.every_s = title, total, unit, every_s
        self.done = 0
        self._figures: dict[str, str] = {}
        self._start_s = self._printed_s = time.monotonic()
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
        """Units a second since the start."""
        return self.done / max(time.monotonic() - self._start_s, 1e-9)

    def advance(self, count: int = 1, **figures: float | int | str) -> None:
        """``count`` more are done; ``figures`` replace the ones shown before under the same names."""
        self.done += count
        for name, value in figures.items():
            self._figures[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note())
        elif time.monotonic() - self._printed_s >= self.every_s:
            self._print()

    def _note(self) -> str:
        parts = [f"{self.rate:.1f} {self.unit}/s"]
        if self.total and self.done and self.done < self.total:
            parts.append(f"{(self.total - self.done) / self.rate:.0f} s left")
        return ", ".join(parts + [f"{name} {value}" for name, value in self._figures.items()])

    def _print(self) -> None:
        self._printed_s = time.monotonic()
        total = "" if self.total is None else f"/{self.total}"
        print(f"{self.title}: {self.done}{total} {self.unit}, {self._note()}", file=sys.stderr, flush=True)

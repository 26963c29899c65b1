"""Jobs of the demo one after the other: each as the command line would run it, with what it tells."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tubelet.config import Settings

from tubelet_jobs.common import say
from tubelet_jobs.options import command_line

S = TypeVar("S", bound=Settings)

_COLUMNS = ("job", "seconds", "figures")


@dataclass(frozen=True)
class Places:
    """Where the jobs of one demo read and write."""

    source: str
    labels: str | None
    split: str | None
    inbox: str | None  # None: label what was indexed
    manifest: str
    model: str
    predictions: str


@dataclass(frozen=True)
class Step:
    """One job of the demo: its name, what it took, and its JSON summary."""

    job: str
    seconds: float
    summary: dict[str, Any]


class Steps:
    """Runs jobs and keeps what they tell."""

    def __init__(self) -> None:
        self.done: list[Step] = []

    def run(self, job: Callable[[S], None], settings: S) -> None:
        """Call ``job`` with its command line shown, and take the summary it prints."""
        name = job.__module__.rpartition(".")[2]
        say(f"\n$ {command_line(name, settings)}")
        started_s = time.monotonic()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            job(settings)
        # Ray prints messages of its own at any time.
        summary = json.loads([line for line in printed.getvalue().splitlines() if line.startswith("{")][-1])
        self.done.append(Step(name, round(time.monotonic() - started_s, 1), summary))


def steps_summary(steps: Sequence[Step], job: str) -> Mapping[str, Any]:
    """The JSON summary of ``job``."""
    return next(step.summary for step in steps if step.job == job)


def show_table(steps: Sequence[Step]) -> None:
    """What each job took and found, to stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*_COLUMNS)
    for step in steps:
        table.add_row(step.job, f"{step.seconds:.1f}", ", ".join(_figures(step.summary)))
    Console(stderr=True).print(table)


_KEY_FIGURES = ("objects", "errors", "steps", "loss", "clips_per_s", "top1", "top5", "videos_per_s", "shown")


def _figures(summary: Mapping[str, Any]) -> Iterator[str]:
    for name in _KEY_FIGURES:
        value = summary.get(name)
        if value is not None:
            yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"

"""What the driver knows of a training run by its ranks' records, and what it tells of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from tubelet.progress import ProgressLine
from tubelet.tracking import Tracker
from tubelet.training.events import Record
from tubelet.training.failures import Reasons

_log = logging.getLogger(__name__)

# Videos that failed are listed up to this many; the counts go on.
MAX_FAILURES = 10_000


@dataclass
class Progress:
    """What the driver knows from the ranks' records so far."""

    step: int = 0
    outcome: str = ""
    problem: str = ""
    judged: tuple[int, int] = (0, 0)  # of the clips that the run was judged by: failed, all
    failed: int = 0
    restarts: int = -1
    first_step: int = 0
    world: int = 0
    nodes: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    reasons: Reasons = field(default_factory=Reasons)
    stall_s: float = 0.0
    steps_s: float = 0.0
    timed_steps: int = 0


def take(records: Sequence[Record], progress: Progress, tracker: Tracker, line: ProgressLine) -> None:
    """Add what the ranks told to ``progress``, to the run on record and to the line that a person sees."""
    for record in records:
        if record["kind"] == "start":
            _on_start(record, progress)
            progress.step = progress.first_step = record["step"]
            line.restart(record["step"])
        elif record["kind"] == "step":
            _on_step(record, progress, tracker, line)
        elif record["kind"] == "empty step":
            progress.step = record["step"]
            progress.failed += record["failed"]
            line.advance(1, errors=progress.failed)
        elif record["kind"] == "failure":
            progress.reasons.add(record["code"], record["uri"], record["error"])
            if len(progress.failures) < MAX_FAILURES:
                progress.failures[record["uri"]] = (record["code"], record["error"])
        elif record["kind"] == "validation":
            progress.validation = record["figures"]
            tracker.log_metrics({f"val/{name}": v for name, v in record["figures"].items()}, record["step"])
        elif record["kind"] == "end":
            progress.step, progress.outcome = record["saved"], record["outcome"]
            progress.problem, progress.judged = record["problem"], (record["failed"], record["clips"])


def _on_start(record: Record, progress: Progress) -> None:
    """Say why the ranks started again, and where they go on."""
    progress.restarts += 1
    nodes, world = sum(node["Alive"] for node in ray.nodes()), int(record["world"])
    if progress.restarts:
        _log.warning(restart_line(progress, nodes, world, int(record["step"])))
    progress.nodes, progress.world = nodes, world


def restart_line(before: Progress, nodes: int, world: int, step: int) -> str:
    """What happened to a run that was at ``before`` and goes on at ``step`` with ``world`` ranks."""
    what = "node lost" if nodes < before.nodes else "node joined" if world > before.world else "rank lost"
    ranks = f"{world} rank{'s' * (world != 1)}"
    return f"{what} at step {before.step}; going on at step {step} with {ranks}"


def _on_step(record: Record, progress: Progress, tracker: Tracker, line: ProgressLine) -> None:
    figures: dict[str, float] = record["figures"]
    tracker.log_metrics({f"train/{name}": value for name, value in figures.items()}, record["step"])
    if record.get("again"):
        return
    progress.step, progress.figures = record["step"], figures
    progress.failed += record["failed"]
    if progress.step > progress.first_step + 1:  # the first batch is the wait for the stream to start
        progress.stall_s += figures["data_stall"] * figures["step_s"]
        progress.steps_s += figures["step_s"]
        progress.timed_steps += 1
    line.advance(
        1,
        loss=figures.get("loss", "none"),
        clips_per_s=figures["clips_per_s"],
        data_stall=figures["data_stall"],
        errors=progress.failed,
    )


def summary_of(progress: Progress, batch: int, seconds: float) -> dict[str, Any]:
    """What the summary says of how it went.

    Args:
        batch: clips per step.
        seconds: that the run took.
    """
    return {
        "loss": progress.figures.get("loss"),
        "clips_per_s": progress.timed_steps * batch / progress.steps_s if progress.steps_s else None,
        "data_stall": progress.stall_s / progress.steps_s if progress.steps_s else None,
        "failed_clips": progress.failed,
        "failed_videos": len(progress.failures),
        "restarts": max(progress.restarts, 0),
        "seconds": round(seconds, 1),
    }

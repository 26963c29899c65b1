"""The training loop of one rank.

A step: micro-batches forward and backward, one all-reduce of the gradients, the division by the global sum of
weights, clipping, the update. All ranks do the same steps, because the plan fixes their number and the
totals that decide anything (stop, preemption, too many failed clips) are reduced before they are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.clips import Batch, ClipSpec, seed_of
from pipeline.clips.plan import BatchShape
from pipeline.training.board import Poster
from pipeline.training.checkpoint import CheckpointWriter
from pipeline.training.examples import Targets
from pipeline.training.feed import FeedConfig, micro_batches
from pipeline.training.recipe import Recipe
from pipeline.training.state import TrainState

# How often all ranks ask Ray Train together whether a node is about to go: the question is a barrier.
PREEMPTION_EVERY_S = 5.0
# Failed clips are judged once this many were seen, so that one broken video at the start ends nothing.
JUDGED_CLIPS = 64


@dataclass(frozen=True)
class TrainJob:
    """All that a rank needs to know; small, as it travels to every rank.

    ``targets`` lie in the object store. ``initial`` is the model file that step 0 starts from.
    ``watch_nodes``: nodes may be taken away, with notice.
    """

    recipe: Recipe
    spec: ClipSpec
    labels: dict[str, list[str]]
    targets: ray.ObjectRef[Targets]
    feed: FeedConfig
    initial: str
    board: Any
    metadata: dict[str, Any]
    total_steps: int
    warmup_steps: int
    watch_nodes: bool = False


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of a rank, called by Ray Train."""
    Rank(config["job"]).run()


@dataclass
class Totals:
    """What the ranks sum up each step; the order of the fields is the order on the wire."""

    loss: float = 0.0
    weight: float = 0.0
    correct: float = 0.0
    failed: float = 0.0
    wait_s: float = 0.0
    decode_s: float = 0.0
    stop: float = 0.0
    look_for_preemption: float = 0.0

    def reduced(self, device: torch.device) -> Tensor:
        """The global sums, float64."""
        values = torch.tensor(list(vars(self).values()), dtype=torch.float64, device=device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
        return values

    @classmethod
    def of(cls, values: Tensor) -> Totals:
        """Read reduced sums; waits for the device."""
        return cls(*values.tolist())


class Rank:
    """One rank: its model, its share of every global batch, and (rank 0) the checkpoints and the figures."""

    def __init__(self, job: TrainJob) -> None:
        context = ray.train.get_context()
        self.job, self.recipe = job, job.recipe
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.shape: BatchShape = job.feed.shape(self.world)
        self.targets: Targets = ray.get(job.targets)
        self.state = TrainState.start(job, self.device)
        self.poster = Poster(job.board)
        self.writer = CheckpointWriter(job.feed.checkpoints) if self.rank == 0 else None
        self.seen = self.failed = 0.0
        self.saved_step = self.state.step or -1
        self._asked_s = time.monotonic()

    def run(self) -> None:
        """Train to the last step, or to the step at which all ranks agree to stop."""
        self._post(kind="start", step=self.state.step, world=self.world, device=str(self.device))
        batches = micro_batches(self.recipe.prefetch)
        outcome = "done"
        for step in range(self.state.step, self.job.total_steps):
            started_s = time.monotonic()
            totals, norm = self._step(step, batches)
            seconds = time.monotonic() - started_s
            self._report(step, totals, norm, seconds)
            outcome = self._verdict(totals)
            last = step + 1 == self.job.total_steps or outcome != "done"
            if last or (step + 1) % self.recipe.checkpoint_every == 0:
                self._save()
            if outcome != "done":
                break
            self._heed_preemption(totals)
        if self.writer:
            self.writer.close()
        self._post(kind="end", step=self.state.step, outcome=outcome)
        self.poster.flush()

    # ---- one step

    def _step(self, step: int, batches: Iterator[Batch]) -> tuple[Totals, float]:
        self.state.schedule(step)
        mine = Totals()
        for part in range(self.recipe.accumulate):
            waited_s = time.monotonic()
            batch = next(batches)
            mine.wait_s += time.monotonic() - waited_s
            self._check_place(batch, step, part)
            with self._synchronised(part == self.recipe.accumulate - 1):
                self._micro_step(step, part, batch, mine)
        self._wish(mine)
        totals = mine.reduced(self.device)
        norm = self.state.update(self.recipe.batch / totals[1])
        return Totals.of(totals), norm

    def _micro_step(self, step: int, part: int, batch: Batch, mine: Totals) -> None:
        start, stop = self.shape.bounds(part * self.world + self.rank)
        count = stop - start
        weight = torch.tensor(batch["weight"][:count], device=self.device)
        index = batch["index"][:count]
        tubelets = torch.tensor(batch["tubelets"][:count], device=self.device)
        targets = {
            head: torch.tensor(values[index], device=self.device) for head, values in self.targets.items()
        }
        # Drop-out and stochastic depth: a function of the place in the run, so a resumed run draws the same.
        torch.manual_seed(seed_of("step", self.recipe.seed, step, part, self.rank))
        loss, correct = self.state.loss(tubelets, targets, weight)
        # DDP averages over ranks; the sum over all ranks divided by the batch is what we are after.
        self.state.backward(loss * (self.world / self.recipe.batch))
        mine.loss += float(loss.detach())
        mine.weight += float(weight.sum())
        mine.correct += float(correct)
        mine.failed += count - float(np.count_nonzero(batch["weight"][:count]))
        mine.decode_s += float(batch["decode_s"][:count].sum())

    def _check_place(self, batch: Batch, step: int, part: int) -> None:
        """Wrong rows must never train silently: the stream deals out what the plan says, or the run fails."""
        expected = (step, part * self.world + self.rank, self.shape.rows)
        found = (int(batch["step"][0]), int(batch["part"][0]), len(batch["step"]))
        if found != expected:
            raise RuntimeError(f"the stream dealt (step, part, rows) {found} where {expected} was due")

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are all-reduced once a step, in the backward pass of the last micro-batch."""
        return nullcontext() if last else self.state.no_sync()

    # ---- what the ranks agree on

    def _wish(self, mine: Totals) -> None:
        if self.rank:
            return
        mine.stop = float(bool(self.poster.stop_reason))
        if self.job.watch_nodes and time.monotonic() - self._asked_s > PREEMPTION_EVERY_S:
            mine.look_for_preemption = 1.0
            self._asked_s = time.monotonic()

    def _verdict(self, totals: Totals) -> str:
        """``done`` to go on; else why all ranks stop after this step."""
        if totals.stop:
            return "stopped"
        self.seen += self.recipe.batch
        self.failed += totals.failed
        if self.seen >= JUDGED_CLIPS and self.failed > self.recipe.max_error_rate * self.seen:
            return "too many errors"
        return "done"

    def _heed_preemption(self, totals: Totals) -> None:
        """Save before a node goes; Ray Train restarts the ranks elsewhere and counts no failure."""
        if totals.look_for_preemption and ray.train.get_preemption_info() is not None:
            self._save()
            if self.writer:
                self.writer.wait()

    # ---- what rank 0 tells and keeps

    def _report(self, step: int, totals: Totals, norm: float, seconds: float) -> None:
        weight = max(totals.weight, 1e-12)
        figures = {
            "loss": totals.loss / weight,
            "accuracy": totals.correct / weight,
            "lr": self.state.lr,
            "grad_norm": norm,
            "clips_per_s": self.recipe.batch / seconds,
            "data_stall": totals.wait_s / self.world / seconds,
            "step_s": seconds,
            "decode_s_per_clip": totals.decode_s / self.recipe.batch,
        }
        self._post(kind="step", step=step + 1, figures=figures, failed=int(totals.failed))

    def _save(self) -> None:
        if self.state.step == self.saved_step:
            return
        self.saved_step = self.state.step
        write = self.state.snapshot()
        if self.writer:
            self.writer.save(self.state.step, write)
            self._post(kind="checkpoint", step=self.state.step)

    def _post(self, **record: Any) -> None:
        if self.rank == 0:
            self.poster.post(record)

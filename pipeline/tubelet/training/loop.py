"""The training loop of one rank.

A step: micro-batches forward and backward, one all-reduce of the gradients, the division by the global sum
of weights, clipping, the update. All ranks do the same steps, because the plan fixes their number and the
totals that decide anything (stop, preemption, too many failed clips) are reduced before they are looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from tubelet.clips import Batch, seed_of
from tubelet.config import usable_cores
from tubelet.training.checkpoint import CheckpointWriter
from tubelet.training.events import EventSender, Record
from tubelet.training.examples import Targets
from tubelet.training.feed import Prefetcher, micro_batches
from tubelet.training.forward import Forward, failed_rows
from tubelet.training.job import TrainJob
from tubelet.training.plan import BatchShape
from tubelet.training.speed import peak_flops, train_flops
from tubelet.training.state import TrainState
from tubelet.training.validation import Validator

# How often all ranks ask Ray Train together whether a node is about to go: the question is a barrier.
PREEMPTION_EVERY_S = 5.0
# Failed clips are judged once this many were seen, so that one broken video at the start ends nothing.
JUDGED_CLIPS = 64


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of a rank, called by Ray Train."""
    job: TrainJob = config["job"]
    context = ray.train.get_context()
    use_cores(context.get_local_world_size())
    # The stream starts now: its first decode workers come up while the model is loaded.
    batches = Prefetcher(micro_batches(job.recipe.prefetch))
    info = RankInfo(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    Rank(job, info, batches, ray.get(job.targets), EventSender(job.events)).run()


@dataclass(frozen=True)
class RankInfo:
    """Which of the ranks this is, and what it computes on."""

    rank: int
    world: int
    device: torch.device


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

    def reduced(self, sums: Tensor) -> Tensor:
        """Global sums, float64 on the device; ``sums`` are this rank's first three fields."""
        rest = torch.tensor(list(vars(self).values())[3:], dtype=torch.float64)
        values = torch.cat([sums.double(), rest.to(sums.device, non_blocking=True)])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
        return values


@dataclass
class Pending:
    """A step that was launched. Its totals are read one step later: a GPU never waits for the host."""

    step: int
    totals: Tensor
    norm: Tensor
    lr: float
    seconds: float


class Rank:
    """One rank: its model, its share of every global batch, and (rank 0) the checkpoints and the figures."""

    def __init__(
        self,
        job: TrainJob,
        info: RankInfo,
        batches: Iterator[Batch],
        targets: tuple[Targets, Targets | None],
        events: EventSender,
    ) -> None:
        self.job, self.recipe, self.events = job, job.recipe, events
        self.rank, self.world, self.device = info.rank, info.world, info.device
        self.batches = batches
        self.shape: BatchShape = job.feed.shape(self.world)
        self.state = TrainState.start(job, self.device)
        self.forward = Forward(self.recipe, self.state.model.config, targets[0], self.device)
        self.validator: Validator | None = None
        if job.validation is not None and targets[1] is not None:
            many = self.recipe.multilabel
            self.validator = Validator(job.validation, targets[1], self.shape, self.state, many)
        self.peak_flops = peak_flops(self.device, self.recipe.precision) if self.rank == 0 else None
        self.notes = {name: self.state.notes.get(name) for name in ("validation", "best")}
        self.writer = CheckpointWriter(job.feed.checkpoints) if self.rank == 0 else None
        self.saved_step = self.state.step or -1
        self.unflushed: list[Record] = []  # records that no checkpoint holds yet
        self.seen = self.failed = 0.0
        self._asked_s = time.monotonic()

    def run(self) -> None:
        """Train to the last step, or to the step at which all ranks agree to stop."""
        self._send(kind="start", step=self.state.step, world=self.world, device=str(self.device))
        for record in self.state.unflushed:
            # The driver may have died before it logged them; the tracker skips those that it has.
            self._send(**record, again=True)
        outcome = self._steps()
        if self.state.step > 0:
            self._save()
        if self.writer:
            self.writer.close()
        self._send(kind="end", step=self.state.step, outcome=outcome)
        self.events.flush()

    def _steps(self) -> str:
        """Do the steps that are left; returns ``done``, or why the ranks stopped before the end."""
        before: Pending | None = None
        outcome = "done"
        for step in range(self.state.step, self.job.feed.total_steps):
            now = self._step(step)
            outcome, before = self._finish_step(before), now
            if outcome == "done" and self._is_due(step + 1):
                # A checkpoint holds the records of all steps before it.
                outcome, before = self._finish_step(before), None
                self._validate(step + 1)
                self._save()
            if outcome != "done":
                break
        final = self._finish_step(before)
        at_end = self.state.step == self.job.feed.total_steps
        return "done" if at_end else outcome if outcome != "done" else final

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint, or a validation (which ends with one), follows ``step`` steps."""
        validates = self.validator is not None and self.validator.validation.due(step)
        return validates or step % self.recipe.checkpoint_every == 0

    # ---- one step

    def _step(self, step: int) -> Pending:
        started_s = time.monotonic()
        lr, local, mix = self.state.set_lr(step), Totals(), self.forward.mix_of(step)
        sums = torch.zeros(3, device=self.device)
        for part in range(self.recipe.accumulate):
            waited_s = time.monotonic()
            batch = next(self.batches)
            local.wait_s += time.monotonic() - waited_s
            count = self._check_block(batch, step, part)
            local.failed += failed_rows(batch, count)
            self._send_failures(batch, count)
            local.decode_s += float(batch["decode_s"][:count].sum())
            # Drop-out and stochastic depth draw from the place in the run: a resumed run draws the same.
            torch.manual_seed(seed_of("step", self.recipe.seed, step, part, self.rank))
            with self.state.parallel.synchronised(part == self.recipe.accumulate - 1):
                with self.state.autocast():
                    found = self.forward(self.state.parallel.module, batch, count, mix)
                # Ranks average; the sum over all ranks, divided by the batch, is what we are after.
                self.state.backward(found[0] * (self.world / self.recipe.batch))
            sums += found.detach()
        self._add_requests(local)
        totals = local.reduced(sums)
        # 1 but for clips that failed; where all did, no gradient at all rather than 0/0.
        factor = torch.where(totals[1] > 0, self.recipe.batch / totals[1], 0.0)
        norm = self.state.update(factor)
        return Pending(step, totals, norm, lr, time.monotonic() - started_s)

    def _check_block(self, batch: Batch, step: int, part: int) -> int:
        """Rows of the micro-batch that are not filling, after a look at whether it is the one that was due.

        Raises:
            RuntimeError: it is not: wrong rows must never train silently.
        """
        place = part * self.world + self.rank
        found = (int(batch["step"][0]), int(batch["part"][0]), len(batch["step"]))
        if found != (step, place, self.shape.rows):
            due = (step, place, self.shape.rows)
            raise RuntimeError(f"the stream dealt (step, part, rows) {found} where {due} was due")
        start, stop = self.shape.bounds(place)
        return stop - start

    # ---- what the ranks agree on

    def _add_requests(self, local: Totals) -> None:
        if self.rank:
            return
        local.stop = float(bool(self.events.stop_reason))
        if self.job.watch_nodes and time.monotonic() - self._asked_s > PREEMPTION_EVERY_S:
            local.look_for_preemption = 1.0
            self._asked_s = time.monotonic()

    def _finish_step(self, pending: Pending | None) -> str:
        """Report a step from its totals, the same on all ranks; returns ``done`` (go on), or why to stop."""
        if pending is None:
            return "done"
        totals = Totals(*pending.totals.tolist())
        self._report(pending, totals)
        if totals.look_for_preemption and ray.train.get_preemption_info() is not None:
            # Ray Train will start the ranks anew elsewhere, and counts no failure.
            self._save()
            if self.writer:
                self.writer.wait()
        self.seen += self.recipe.batch
        self.failed += totals.failed
        if self.seen >= JUDGED_CLIPS and self.failed > self.recipe.max_error_rate * self.seen:
            return "too many errors"
        return "stopped" if totals.stop else "done"

    # ---- records and checkpoints (rank 0)

    def _send_failures(self, batch: Batch, count: int) -> None:
        for uri, code, error in zip(
            *(batch[name][:count] for name in ("uri", "error_code", "error")), strict=True
        ):
            if code:
                self.events.send({"kind": "failure", "uri": str(uri), "code": str(code), "error": str(error)})

    def _report(self, pending: Pending, totals: Totals) -> None:
        weight, seconds = max(totals.weight, 1e-12), pending.seconds
        figures = {
            "loss": totals.loss / weight,
            "epoch": (pending.step + 1) * self.recipe.batch / self.job.train_rows,
            "lr": pending.lr,
            "grad_norm": float(pending.norm),
            "clips_per_s": self.recipe.batch / seconds,
            "data_stall": totals.wait_s / self.world / seconds,
            "step_s": seconds,
            "decode_s_per_clip": totals.decode_s / self.recipe.batch,
        }
        if not self.recipe.multilabel and not self.recipe.augment.mixup and not self.recipe.augment.cutmix:
            figures["accuracy"] = totals.correct / weight
        if self.peak_flops:
            rate = self.recipe.batch / seconds / self.world
            figures["mfu"] = rate * train_flops(self.state.model.config) / self.peak_flops
        if self.device.type == "cuda":
            figures["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        record = {"kind": "step", "step": pending.step + 1, "figures": figures, "failed": int(totals.failed)}
        self.unflushed.append(record)
        self._send(**record)

    def _validate(self, step: int) -> None:
        """Validate if it is due. The best step is spared by retention, and noted in each checkpoint."""
        if self.validator is None or not self.validator.validation.due(step):
            return
        scores = self.validator(self.batches, step)
        best = self.notes["best"]
        if best is None or scores.main > best["score"]:
            self.notes["best"] = {"step": step, "score": scores.main}
        names = next(iter(self.job.labels.values()))
        self.notes["validation"] = {
            "scores": scores.values,
            "share": dict(zip(names, scores.share, strict=False)),
            "confidence": scores.confidence,
        }
        record = {"kind": "validation", "step": step, "figures": scores.values}
        self.unflushed.append(record)
        self._send(**record)

    def _save(self) -> None:
        if self.state.step == self.saved_step:
            return
        self.saved_step = self.state.step
        if self.writer is None and not self.state.parallel.sharded:
            return
        write = self.state.snapshot(self.notes, self.unflushed)
        self.unflushed = []
        if self.writer:
            best = self.notes["best"]
            self.writer.save(self.state.step, write, keep=best["step"] if best else None)
            self._send(kind="checkpoint", step=self.state.step)

    def _send(self, **record: Any) -> None:
        if self.rank == 0:
            self.events.send(record)


def use_cores(local_ranks: int) -> None:
    """Share the machine's cores among its ranks; Ray would give each as many threads as it reserved CPUs.

    ``TUBELET_RANK_CORES`` (Linux's numbers, such as ``0,1``) names cores for the ranks of a machine instead:
    what is kept from these then does not take turns with the ranks.
    """
    named = os.environ.get("TUBELET_RANK_CORES")
    if named:
        cores = {int(core) for core in named.split(",")}
        os.sched_setaffinity(0, cores)  # this thread, and those it starts
        torch.set_num_threads(max(1, len(cores) // local_ranks))
    elif not torch.cuda.is_available():
        torch.set_num_threads(max(1, usable_cores() // local_ranks))

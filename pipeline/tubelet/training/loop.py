"""The training loop of one rank.

A step: micro-batches forward and backward, one all-reduce of the gradients, the division by the global sum
of weights, clipping, the update. All ranks do the same steps, because the plan fixes their number and the
totals that decide anything (stop, preemption, too many failed clips) are reduced before they are looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from tubelet.clips import Batch, seed_of
from tubelet.metrics import GPU_UTILISATION, Utilisation
from tubelet.storage.lock import LockLostError
from tubelet.training.checkpoint import CheckpointWriter
from tubelet.training.events import EventSender, Record
from tubelet.training.examples import Targets
from tubelet.training.feed import Prefetcher, micro_batches
from tubelet.training.forward import Forward, failed_rows
from tubelet.training.health import Health, Outcome
from tubelet.training.job import TrainJob
from tubelet.training.plan import BatchShape
from tubelet.training.resources import use_cores
from tubelet.training.speed import peak_flops, train_flops
from tubelet.training.state import TrainState
from tubelet.training.totals import Pending, Totals
from tubelet.training.validation import Validator

# How often all ranks ask Ray Train together whether a node is about to go: the question is a barrier.
PREEMPTION_EVERY_S = 5.0


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
        self.saved_steps = [self.state.step or -1]
        self.unflushed: list[Record] = []  # records that no checkpoint holds yet
        scaled = self.recipe.precision == "fp16"
        self.health = Health(self.recipe.max_error_rate, self.recipe.max_skipped_steps if scaled else None)
        self.last_forward: Callable[[], Tensor] | None = None
        self.save_now = self.learned = False
        self.busy = Utilisation(GPU_UTILISATION, shown=self.device.type == "cuda")
        self._asked_s = time.monotonic()

    def run(self) -> None:
        """Train to the last step, or to the step at which all ranks agree to stop."""
        self._send(kind="start", step=self.state.step, world=self.world, device=str(self.device))
        for record in self.state.unflushed:
            # The driver may have died before it logged them; the tracker skips those that it has.
            self._send(**record, again=True)
        with self.busy.working():
            outcome = self._steps()
        # Of a last step that nothing was learned from there is a checkpoint only if it ends the run.
        keeps = outcome is Outcome.DONE or (outcome is Outcome.STOPPED and self.learned)
        if keeps and self.state.step > 0 and not self._save():
            outcome = Outcome.DIVERGED
        if self.writer:
            self.writer.close()
            if self.writer.lost:
                outcome, self.health.problem = Outcome.TAKEN_OVER, self.writer.lost
            elif self.writer.full:
                outcome, self.health.problem = Outcome.DISK_FULL, self.writer.full
        if outcome is Outcome.TOO_MANY_ERRORS:
            self._withdraw()
        self._send(
            kind="end",
            step=self.state.step,
            saved=max(self.saved_steps[-1], 0),
            outcome=str(outcome),
            problem=self.health.problem,
            failed=self.health.window.failed,
            clips=self.health.window.rows,
        )
        self.events.flush()

    def _steps(self) -> Outcome:
        """Do the steps that are left; returns why the ranks stopped."""
        before: Pending | None = None
        for step in range(self.state.step, self.job.feed.total_steps):
            now = self._step(step)
            outcome, before = self._finish_step(before), now
            if outcome is Outcome.DONE and (self._is_due(step + 1) or self.save_now):
                # A checkpoint holds the records of all steps before it.
                outcome, before = self._finish_step(before), None
                if outcome is Outcome.DONE and not self._checkpoint(step + 1):
                    outcome = Outcome.DIVERGED
            if outcome is not Outcome.DONE:
                return self._last_outcome(outcome, before)
        return self._last_outcome(Outcome.DONE, before)

    def _last_outcome(self, outcome: Outcome, pending: Pending | None) -> Outcome:
        """The outcome once the step that was launched last is looked at too."""
        final = self._finish_step(pending) if outcome.is_sound else outcome
        if not final.is_sound:
            return final
        at_end = self.state.step == self.job.feed.total_steps
        return self.health.at_end() if at_end else Outcome.STOPPED

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint, or a validation (which ends with one), follows ``step`` steps."""
        validates = self.validator is not None and self.validator.validation.due(step)
        return validates or step % self.recipe.checkpoint_every == 0

    def _checkpoint(self, step: int) -> bool:
        """Validate where it is due, and save; returns whether the weights are sound."""
        if not self._validate(step, counts=self.learned):
            return False
        # Of a batch that nothing was learned from there is nothing to keep: what is there may be better.
        sound = self._save() if self.learned else True
        if self.save_now and self.writer:
            self.writer.wait()  # the node is about to go, or the ranks are
            self._send(kind="saved")
        self.save_now = False
        return sound

    # ---- one step

    def _step(self, step: int) -> Pending:
        started_s = time.monotonic()
        lr, local, mix = self.state.set_lr(step), Totals(), self.forward.mix_of(step)
        sums, weighs = torch.zeros(3, device=self.device), False
        for part in range(self.recipe.accumulate):
            waited_s = time.monotonic()
            with self.busy.waiting():
                batch = next(self.batches)
            local.wait_s += time.monotonic() - waited_s
            count = self._check_block(batch, step, part)
            local.failed += failed_rows(batch, count)
            weighs = weighs or bool(np.any(batch["weight"][:count] > 0))
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
        self.last_forward = partial(self.forward, self.state.parallel.module, batch, count, mix)
        self._add_requests(local)
        totals = local.reduced(sums)
        # A rank that has a good clip knows that the batch has weight; only one that has none needs to look.
        learned = weighs or float(totals[1]) > 0
        # 1 but for clips that failed.
        norm = self.state.update(self.recipe.batch / totals[1]) if learned else self.state.skip()
        self.learned = learned
        return Pending(step, totals, norm, lr, time.monotonic() - started_s, learned)

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
        told = self.events.stop_reason == Outcome.TAKEN_OVER
        ended = self.writer and (self.writer.lost or self.writer.full)
        local.writes_no_more = float(told or bool(ended))
        local.save = float(self.events.save)
        if self.job.watch_nodes and time.monotonic() - self._asked_s > PREEMPTION_EVERY_S:
            local.look_for_preemption = 1.0
            self._asked_s = time.monotonic()

    def _finish_step(self, pending: Pending | None) -> Outcome:
        """Report a step from its totals, the same on all ranks; returns ``DONE`` (go on), or why to stop."""
        if pending is None:
            return Outcome.DONE
        totals = Totals(*pending.totals.tolist())
        step = pending.step + 1
        if totals.writes_no_more:
            return Outcome.TAKEN_OVER
        if totals.look_for_preemption and ray.train.get_preemption_info() is not None:
            # Ray Train will start the ranks anew elsewhere, and counts no failure.
            self.save_now = True
        if totals.save:
            self.save_now = True
        clips = self.health.see_clips(pending.step, self.recipe.batch, int(totals.failed))
        if not pending.learned:
            self._send(kind="empty step", step=step, failed=int(totals.failed))
        else:
            loss, norm = totals.loss / totals.weight, float(pending.norm)
            numbers = self.health.see_numbers(step, loss, norm)
            if numbers is not Outcome.DONE:
                return numbers
            self._report(pending, totals, loss, norm)
        if clips is not Outcome.DONE:
            return clips
        return Outcome.STOPPED if totals.stop else Outcome.DONE

    def _weights_are_sound(self) -> bool:
        """Whether the weights as they are give a finite loss; the same answer on all ranks.

        The step that spoils the weights is found out by the next one's loss only; a checkpoint, and the end
        of a run, come before that.
        """
        if self.last_forward is None:
            return True
        with torch.no_grad(), self.state.autocast():
            lost = (~torch.isfinite(self.last_forward()[0])).float()
        self.state.parallel.reshard()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(lost)
        return not bool(lost)

    # ---- records and checkpoints (rank 0)

    def _send_failures(self, batch: Batch, count: int) -> None:
        for uri, code, error in zip(
            *(batch[name][:count] for name in ("uri", "error_code", "error")), strict=True
        ):
            if code:
                self.events.send({"kind": "failure", "uri": str(uri), "code": str(code), "error": str(error)})

    def _report(self, pending: Pending, totals: Totals, loss: float, norm: float) -> None:
        seconds = pending.seconds
        figures = {
            "loss": loss,
            "epoch": (pending.step + 1) * self.recipe.batch / self.job.train_rows,
            "lr": pending.lr,
            "grad_norm": norm,
            "clips_per_s": self.recipe.batch / seconds,
            "data_stall": totals.wait_s / self.world / seconds,
            "step_s": seconds,
            "decode_s_per_clip": totals.decode_s / self.recipe.batch,
        }
        if not self.recipe.multilabel and not self.recipe.augment.mixup and not self.recipe.augment.cutmix:
            figures["accuracy"] = totals.correct / totals.weight
        if self.peak_flops:
            rate = self.recipe.batch / seconds / self.world
            figures["mfu"] = rate * train_flops(self.state.model.config) / self.peak_flops
        if self.device.type == "cuda":
            figures["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        record = {
            "kind": "step",
            "step": pending.step + 1,
            # Of a step that the scaler of fp16 left out, the norm is not finite.
            "figures": _finite(figures),
            "failed": int(totals.failed),
        }
        self.unflushed.append(record)
        self._send(**record)

    def _validate(self, step: int, *, counts: bool) -> bool:
        """Validate if it is due; returns whether the scores are numbers.

        The best step is spared by retention, and noted in each checkpoint; ``counts``: this one may be it.
        """
        if self.validator is None or not self.validator.validation.due(step):
            return True
        scores = self.validator(self.batches, step)
        if not scores.finite:
            self.health.diverged("validation", step)
            return False
        best = self.notes["best"]
        if counts and math.isfinite(scores.main) and (best is None or scores.main > best["score"]):
            self.notes["best"] = {"step": step, "score": scores.main}
        names = next(iter(self.job.labels.values()))
        self.notes["validation"] = {
            "scores": _finite(scores.values),
            "share": dict(zip(names, scores.share, strict=False)),
            "confidence": scores.confidence,
            "recall": {
                n: r if math.isfinite(r) else None for n, r in zip(names, scores.recall, strict=False)
            },
        }
        record = {"kind": "validation", "step": step, "figures": _finite(scores.values)}
        self.unflushed.append(record)
        self._send(**record)
        return True

    def _save(self) -> bool:
        """Save a checkpoint of the step that the state is at; returns False, and saves none, if it is bad."""
        if self.state.step == self.saved_steps[-1]:
            return True
        if not self._weights_are_sound():
            self.health.diverged("loss with the weights", self.state.step)
            return False
        best, since = self.notes["best"], self.health.failing_since
        spared = (best["step"] if best else None, None if since is None else self._before(since))
        keep = {step for step in spared if step is not None}
        self.saved_steps.append(self.state.step)
        if self.writer or self.state.parallel.sharded:
            write = self.state.snapshot(self.notes, self.unflushed)
            self.unflushed = []
            if self.writer:
                self.writer.save(self.state.step, write, keep=keep)
                self._send(kind="checkpoint", step=self.state.step)
        return True

    def _before(self, step: int) -> int | None:
        """The newest checkpoint of this run of the ranks that knows nothing of ``step`` (from 0)."""
        return max((saved for saved in self.saved_steps if 0 < saved <= step), default=None)

    def _withdraw(self) -> None:
        """Take back the checkpoints made while clips failed: a resume goes on from before that."""
        since = self.health.failing_since
        good = None if since is None else self._before(since)
        if self.writer and good is not None and self.job.feed.checkpoints.is_complete(good):
            with suppress(LockLostError):  # they are another job's now
                self.job.feed.checkpoints.withdraw_after(good)

    def _send(self, **record: Any) -> None:
        if self.rank == 0:
            self.events.send(record)


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures that are numbers: JSON has no other, and a chart shows nothing of them."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}

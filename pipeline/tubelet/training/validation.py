"""Validation between steps: the ranks share the views of all videos; every video counts once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tubelet.clips import Batch
from tubelet.training.examples import Targets
from tubelet.training.losses import as_heads
from tubelet.training.plan import BatchShape, Validation
from tubelet.training.state import TrainState


@dataclass(frozen=True)
class Scores:
    """``values`` by name; ``main`` is the one that picks the best checkpoint, the higher the better.

    Of the first head, to compare later predictions with: ``share``, how often each class came first, and
    ``confidence``, the mean score of the class that did; ``recall``, the share of each class that was found
    (NaN: no video has it; empty where a video may have several labels). ``finite``: whether all logits are
    numbers.
    """

    values: dict[str, float]
    main: float
    share: tuple[float, ...] = ()
    confidence: float | None = None
    recall: tuple[float, ...] = ()
    finite: bool = True


class Validator:
    """Runs the validation of a plan with the weights that a checkpoint would show to its users."""

    def __init__(
        self, validation: Validation, targets: Targets, shape: BatchShape, state: TrainState, multilabel: bool
    ) -> None:
        self.validation, self._shape, self._state = validation, shape, state
        self._targets = {head: torch.from_numpy(values) for head, values in targets.items()}
        self._multilabel = multilabel

    @torch.no_grad()
    def __call__(self, batches: Iterator[Batch], step: int) -> Scores:
        """Mean logits over the views of each video (as the paper averages), scored; the same on all ranks."""
        sums = torch.zeros(self.validation.videos, self._state.model.config.classes + 1)
        with self._state.averaged(), self._evaluating():
            for _ in range(self.validation.rounds(self._shape)):
                batch = next(batches)
                found = (int(batch["step"][0]), int(batch["view"].min()) >= 0)
                if found != (step, True):
                    raise RuntimeError(
                        f"the stream dealt {found} where the validation of step {step} was due"
                    )
                self._add(batch, sums)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(moved := sums.to(self._state.device))
            sums = moved.cpu()
        return self._score(sums)

    def _add(self, batch: Batch, sums: Tensor) -> None:
        """Add the logits of each decoded view to its video's, and count it in the last column."""
        tubelets = torch.tensor(batch["tubelets"], device=self._state.device)
        with self._state.autocast():
            logits = self._state.parallel.module(tubelets)
        whole = torch.cat(list(logits.values()), -1) if isinstance(logits, dict) else logits
        seen = torch.tensor(batch["weight"] > 0)
        rows = F.pad(whole.float().cpu(), (0, 1), value=1.0)[seen]
        sums.index_add_(0, torch.tensor(batch["index"])[seen], rows)

    def _score(self, sums: Tensor) -> Scores:
        decoded = sums[:, -1] > 0
        logits = self._state.model.split_heads(sums[decoded, :-1] / sums[decoded, -1:])
        heads = as_heads(logits, self._state.model.config.label_heads)
        targets = {head: values[decoded] for head, values in self._targets.items()}
        failed = {"failed_videos": float((~decoded).sum())}
        if not bool(decoded.any()):
            return Scores(failed, 0.0)
        if not bool(torch.isfinite(sums[decoded]).all()):
            return Scores(failed, 0.0, finite=False)
        scores = _multi_label(heads, targets) if self._multilabel else _single_label(heads, targets)
        first = next(iter(heads.values()))
        top = (first.sigmoid() if self._multilabel else first.softmax(-1)).max(-1)
        share = torch.bincount(top.indices, minlength=first.shape[1]) / len(first)
        values = {**scores.values, **failed}
        truth = next(iter(targets.values()))
        recall = () if self._multilabel else _recall(top.indices, truth, first.shape[1])
        return Scores(values, scores.main, tuple(share.tolist()), float(top.values.mean()), recall)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        model = self._state.model
        modes = {module: module.training for module in model.modules()}
        model.eval()
        yield
        for module, training in modes.items():
            module.training = training


def _recall(found: Tensor, truth: Tensor, classes: int) -> tuple[float, ...]:
    right = torch.bincount(truth[found == truth], minlength=classes)
    return tuple((right / torch.bincount(truth, minlength=classes)).tolist())


def _single_label(heads: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Scores:
    """Top-1, top-5 (from six classes on) and cross-entropy of each head; and how often all are right."""
    values: dict[str, float] = {}
    right = []
    for head, logits in heads.items():
        name = f"{head}/" if len(heads) > 1 else ""
        best = logits.topk(min(5, logits.shape[1])).indices == targets[head][:, None]
        right.append(best[:, 0])
        values[f"{name}top1"] = float(best[:, 0].float().mean())
        if logits.shape[1] > 5:
            values[f"{name}top5"] = float(best.any(1).float().mean())
        values[f"{name}loss"] = float(F.cross_entropy(logits, targets[head]))
    joint = float(torch.stack(right).all(0).float().mean())
    if len(heads) > 1:
        values["top1"] = joint
    return Scores(values, joint)


def _multi_label(heads: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Scores:
    from tubelet.evaluation.metrics import multi_label_report  # imports torchmetrics, which takes seconds

    values: dict[str, float] = {}
    for head, logits in heads.items():
        report = multi_label_report(logits, targets[head], [str(i) for i in range(logits.shape[1])])
        values |= {f"{head}/{name}" if len(heads) > 1 else name: v for name, v in report.scores.items()}
    main = [value for name, value in values.items() if name.rpartition("/")[2] == "map"]
    return Scores(values, sum(main) / len(main))

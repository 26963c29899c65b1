"""What training minimises, as a sum and a weight, so that ranks divide by the sum of all weights.

A clip that failed to decode has weight 0: it counts neither in the sum nor in the divisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Targets = Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """The loss of a model with ``heads`` (classes by name).

    One label per video: cross-entropy with label smoothing ``y (1 - a) + a / C``, C the head's own number of
    classes; several heads: the mean of theirs (as the paper's code for EPIC-Kitchens). ``multilabel``: binary
    cross-entropy, the mean over classes, smoothed towards 1/2.
    """

    heads: Mapping[str, int]
    smoothing: float = 0.0
    multilabel: bool = False

    def __call__(
        self, logits: Tensor | Mapping[str, Tensor], targets: Targets, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(sum of weight * loss, sum of weight)``, float32 scalars.

        Args:
            logits: ``(B, classes)``, or one such tensor per head.
            targets: float ``(B, classes)`` per head (see :meth:`targets`).
            weight: ``(B,)``.
        """
        named = as_heads(logits, self.heads)
        total = torch.stack([self._one(named[head].float(), targets[head]) for head in self.heads]).mean(0)
        weight = weight.float()
        return (total * weight).sum(), weight.sum()

    def targets(self, labels: Targets) -> dict[str, Tensor]:
        """Class numbers int64 ``(B,)``, or rows of 0 and 1 ``(B, classes)``, as float32 ``(B, classes)``."""
        return {head: _rows(labels[head], count) for head, count in self.heads.items()}

    def _one(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each example, ``(B,)``."""
        if self.multilabel:
            smooth = target * (1 - self.smoothing) + 0.5 * self.smoothing
            return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(-1)
        smooth = target * (1 - self.smoothing) + self.smoothing / target.shape[-1]
        return -(smooth * F.log_softmax(logits, -1)).sum(-1)


def as_heads(logits: Tensor | Mapping[str, Tensor], heads: Mapping[str, int]) -> Mapping[str, Tensor]:
    """Logits by head, whether the model gave one tensor or several."""
    return {next(iter(heads)): logits} if isinstance(logits, Tensor) else logits


def _rows(labels: Tensor, classes: int) -> Tensor:
    return (F.one_hot(labels.long(), classes) if labels.ndim == 1 else labels).float()

"""From tubelets and targets to the weighted sum of losses of one micro-batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.recipe import Recipe

Targets = dict[str, Tensor]


class Objective:
    """The loss of a recipe, and how many of a micro-batch the model already gets right."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __call__(
        self, model: nn.Module, tubelets: Tensor, targets: Targets, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``tubelets`` uint8 ``(b, tokens, k)``, ``weight`` float ``(b,)``.

        Returns the weighted sum of losses and the weighted count of right answers (0 for multi-label).
        """
        logits: Any = model(tubelets)
        heads = logits if isinstance(logits, dict) else {next(iter(targets)): logits}
        losses = torch.stack([self._of_head(heads[head], target) for head, target in targets.items()])
        loss = (losses.mean(0) * weight).sum()
        with torch.no_grad():
            right = torch.stack([_right(heads[head], target) for head, target in targets.items()]).all(0)
        return loss, (right * weight).sum()

    def _of_head(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.dim() == 2:
            hot = target.to(torch.float32)
            return F.binary_cross_entropy_with_logits(logits.float(), hot, reduction="none").mean(1)
        smoothing = self._recipe.regularisation.label_smoothing
        return F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)


def _right(logits: Tensor, target: Tensor) -> Tensor:
    if target.dim() == 2:
        return torch.zeros(len(target), dtype=torch.bool, device=target.device)
    return logits.argmax(1) == target

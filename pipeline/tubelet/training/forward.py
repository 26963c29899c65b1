"""From a decoded micro-batch to its loss: augmentation on the device, mixing, the model, the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tubelet.clips import Batch
from tubelet.training.augment import ClipAugment, Sample
from tubelet.training.examples import Targets
from tubelet.training.losses import Objective, as_heads
from tubelet.training.mixup import Mix, apply_mix, draw_mix
from tubelet.training.recipe import Recipe
from tubelet.vivit import ViViTConfig


class Forward:
    """The forward pass of a recipe on ``device``; ``targets`` are those of all training videos."""

    def __init__(self, recipe: Recipe, config: ViViTConfig, targets: Targets, device: torch.device) -> None:
        self._recipe, self._config, self._targets, self._device = recipe, config, targets, device
        self._augment = ClipAugment(recipe.augment, config, recipe.seed)
        self.objective = Objective(
            config.label_heads, recipe.regularisation.label_smoothing, recipe.multilabel
        )
        self._mean = torch.tensor(config.mean, device=device)
        self._std = torch.tensor(config.std, device=device)

    def mix_of(self, step: int) -> Mix | None:
        """The mixing of a step: one draw for the global batch."""
        return draw_mix(self._recipe.augment, self._recipe.seed, step)

    def __call__(self, model: nn.Module, batch: Batch, count: int, mix: Mix | None) -> Tensor:
        """Sums over ``count`` rows, float32 ``(3,)``: weighted loss, weight, weighted right answers.

        Only the first carries gradients. Right answers are counted where a video has one label per head.
        """
        weight = torch.tensor(batch["weight"][:count], device=self._device)
        index = batch["index"][:count]
        labels = {
            head: torch.tensor(values[index], device=self._device) for head, values in self._targets.items()
        }
        # The block in shared memory is read-only, torch wants its own copy.
        tubelets = torch.tensor(batch["tubelets"][:count], device=self._device)
        tubelets = self._augment(tubelets, _samples(batch, count) if self._augment.active else ())
        targets = self.objective.targets(labels)
        if mix is not None:
            tubelets = self._normalise(tubelets) if mix.box is None else tubelets
            tubelets, targets = apply_mix(mix, tubelets, targets, weight, self._config)
        logits = model(tubelets)
        loss, total = self.objective(logits, targets, weight)
        right = self._right(as_heads(logits, self.objective.heads), labels, weight)
        return torch.stack([loss, total, right])

    def _normalise(self, tubelets: Tensor) -> Tensor:
        """Mixing averages pixels, and bytes cannot be averaged."""
        pixels = tubelets.view(*tubelets.shape[:2], -1, 3).float() / 255
        return ((pixels - self._mean) / self._std).view(tubelets.shape)

    @torch.no_grad()
    def _right(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        if self.objective.multilabel:
            return torch.zeros((), device=self._device)
        # The likeliest combination of several heads is made of the likeliest class of each.
        right = torch.stack([logits[head].argmax(-1) == labels[head] for head in labels]).all(0)
        return (right * weight).sum()


def _samples(batch: Batch, count: int) -> Sequence[Sample]:
    columns = (batch[name][:count] for name in ("epoch", "key", "repeat"))
    return [(int(epoch), str(key), int(repeat)) for epoch, key, repeat in zip(*columns, strict=True)]


def failed_rows(batch: Batch, count: int) -> int:
    """How many of the first ``count`` clips could not be decoded."""
    return count - int(np.count_nonzero(batch["weight"][:count]))

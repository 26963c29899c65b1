"""The learning rate as a function of the step, and of nothing else: resuming needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tubelet.training.recipe import Recipe


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up times half a cosine, as the paper's code compounds them (VIVIT, section 4.1).

    ``lr(s) = base * min(1, s/w) * (r + (1-r) * (1 + cos(pi * max(0, s-w) / (S - int(w)))) / 2)``, with
    ``w`` warm-up steps, ``S`` total steps and ``r`` the final ratio. Steps count from 0, so the very first
    update has a learning rate of 0 where there is a warm-up.
    """

    base: float
    total: int
    warmup: float = 0.0
    shape: Literal["cosine", "constant"] = "cosine"
    final_ratio: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe, train_rows: int) -> Schedule:
        """The schedule of a recipe over ``train_rows`` training videos."""
        total, warmup = recipe.length(train_rows)
        return cls(recipe.optimiser.lr, total, warmup, recipe.schedule.shape, recipe.schedule.final_ratio)

    def __call__(self, step: int) -> float:
        """Learning rate of the update at ``step`` (from 0)."""
        warm = min(1.0, step / self.warmup) if self.warmup else 1.0
        if self.shape == "constant":
            return self.base * warm
        done = max(0.0, step - self.warmup) / max(1, self.total - int(self.warmup))
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.base * warm * (self.final_ratio + (1.0 - self.final_ratio) * cosine)

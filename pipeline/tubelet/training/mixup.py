"""Mixup and CutMix: one draw a step for the global batch, each example's partner within its micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.clips import generator
from tubelet.training.recipe import AugmentSettings
from tubelet.vivit import ViViTConfig


@dataclass(frozen=True)
class Mix:
    """One step's draw.

    ``keep``: the share of the example itself; ``box``: CutMix's box as (top, bottom, left, right) in ``[0,
    1]``, None for mixup.
    """

    keep: float
    box: tuple[float, float, float, float] | None = None


def draw_mix(settings: AugmentSettings, seed: int, step: int) -> Mix | None:
    """The draw of ``step``: the same on every rank, and after a resume. None where both are off."""
    draw = generator("mixup", seed, step)
    use_cutmix = settings.cutmix > 0 and (settings.mixup == 0 or draw.random() < 0.5)
    if use_cutmix:
        keep = float(draw.beta(settings.cutmix, settings.cutmix))
        side, row, column = (1 - keep) ** 0.5, float(draw.random()), float(draw.random())
        # The box may reach over the edge, as in CutMix (arXiv 1905.04899, algorithm 1).
        top, left = row - side / 2, column - side / 2
        return Mix(keep, (max(top, 0.0), min(top + side, 1.0), max(left, 0.0), min(left + side, 1.0)))
    return Mix(float(draw.beta(settings.mixup, settings.mixup))) if settings.mixup > 0 else None


def apply_mix(
    mix: Mix, x: Tensor, targets: Mapping[str, Tensor], weight: Tensor, config: ViViTConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mix each example with the one at ``B - 1 - i``; both must have decoded, else it stays as it is.

    ``x``: tubelets ``(B, tokens, t*h*w*3)`` normalised float (mixup averages pixels) or, for CutMix alone,
    also uint8; ``targets``: float ``(B, classes)`` a head; ``weight``: ``(B,)``.
    """
    both = (weight > 0) & (weight.flip(0) > 0)
    if mix.box is None:
        keep = torch.where(both, mix.keep, 1.0)
        return _blend(x, keep.to(x.dtype)), _blend_all(targets, keep)
    inside = _inside(mix.box, config, x.device)
    keep = torch.where(both, 1.0 - inside.float().mean(), 1.0)
    t, h, w = config.tubelet
    parts = x.view(len(x), -1, *inside.shape[:2], t, h, w, 3)
    cut = inside[:, :, None, :, :, None] & both.view(-1, *[1] * 7)
    return torch.where(cut, parts.flip(0), parts).view_as(x), _blend_all(targets, keep)


def _inside(box: tuple[float, float, float, float], config: ViViTConfig, device: torch.device) -> Tensor:
    """Which pixels of a frame lie in the box, in tubelet order: bool ``(n_h, n_w, h, w)``."""
    (_, h, w), (_, n_h, n_w) = config.tubelet, config.grid
    rows, columns = (torch.arange(n * side, device=device) for n, side in ((n_h, h), (n_w, w)))
    top, bottom, left, right = (
        round(edge * side) for edge, side in zip(box, (n_h * h, n_h * h, n_w * w, n_w * w), strict=True)
    )
    inside_rows = ((rows >= top) & (rows < bottom)).view(n_h, 1, h, 1)
    return inside_rows & ((columns >= left) & (columns < right)).view(1, n_w, 1, w)


def _blend_all(targets: Mapping[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    return {head: _blend(target, keep.to(target.dtype)) for head, target in targets.items()}


def _blend(x: Tensor, keep: Tensor) -> Tensor:
    share = keep.view(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * x.flip(0)

"""Heads that look at the frames one by one, trained on frozen features: attention pooling, and Model 2.

They are parts of a ViViT under their final names, trained on standardised features. What standardises folds
into the model: into the keys and values of the attention that pools, or into the last norm of the frames'
encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tubelet.clips import seed_of
from tubelet.training.few.folds import Folds
from tubelet.training.few.task import Floats, Task
from tubelet.training.losses import Objective
from tubelet.training.optim import clip_gradients, make_optimiser, set_lr
from tubelet.training.recipe import OptimiserSettings
from tubelet.vivit import ViViT, ViViTConfig


@dataclass(frozen=True)
class ProbeSettings:
    """How such a head is trained: AdamW, half a cosine after a tenth of warm-up."""

    epochs: int = 15
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    dropout: float = 0.3
    seed: int = 0


def frames_of(frames: npt.NDArray[np.float32], config: ViViTConfig) -> npt.NDArray[np.float32]:
    """Of the table's ``(n, frames, 2, dim)`` what a model of ``config`` pools, ``(n, frames, w)``."""
    chosen = {"token": [0], "gap": [1], "token_gap": [0, 1]}[str(config.classifier)]
    return frames[:, :, chosen].reshape(*frames.shape[:2], -1)


class Probe(nn.Module):
    """The parts of a ViViT behind the features of its frames; their names are those of the whole model."""

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        model = ViViT(config.replace(layers=1))
        self.config = config
        self.temporal_encoder, self.frame_pool, self.head = (
            model.temporal_encoder,
            model.frame_pool,
            model.head,
        )

    def forward(self, frames: Tensor) -> Tensor:
        """``(n, frames, width)`` to logits ``(n, classes)``."""
        if self.temporal_encoder is not None:
            tokens = self.temporal_encoder(frames.unsqueeze(1)).squeeze(1)
            pooled = self.temporal_encoder.pool(tokens)
        else:
            assert self.frame_pool is not None
            pooled = self.frame_pool(frames)
        found: Tensor = self.head(pooled)
        return found


@dataclass(frozen=True)
class FittedProbe:
    """A trained probe, and what its features were standardised by, each ``(width,)``."""

    probe: Probe
    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]

    @torch.no_grad()
    def __call__(self, frames: npt.NDArray[np.float32]) -> Floats:
        """``(n, frames, width)`` to logits, float64 ``(n, classes)``."""
        x = torch.from_numpy((frames - self.mean) / self.scale)
        return np.asarray(self.probe.eval()(x).double().numpy())

    @torch.no_grad()
    def fill(self, model: ViViT) -> None:
        """Put the probe into ``model``, whose frames are not standardised, in place."""
        model.load_state_dict(self.probe.state_dict(), strict=False)
        mean, scale = (torch.from_numpy(part).double() for part in (self.mean, self.scale))
        if model.frame_pool is not None:
            qkv, width = model.frame_pool.attention.qkv, len(mean)
            weight = qkv.weight[width:].double() / scale
            qkv.bias[width:] = (qkv.bias[width:].double() - weight @ mean).float()
            qkv.weight[width:] = weight.float()
        else:
            norm = model.encoder.norm
            norm.bias.copy_((norm.bias.double() - mean) / scale)
            norm.weight.copy_(norm.weight.double() / scale)


def fit_probe(
    frames: npt.NDArray[np.float32], task: Task, config: ViViTConfig, settings: ProbeSettings
) -> FittedProbe:
    """Train a probe on the features ``(n, frames, width)``; the same on every machine of its kind."""
    mean = frames.mean((0, 1))
    scale = frames.std((0, 1))
    scale[scale < 1e-6] = 1.0
    torch.manual_seed(seed_of("probe", settings.seed))
    probe = Probe(config.replace(dropout=settings.dropout)).train()
    x = torch.from_numpy((frames - mean) / scale)
    objective = Objective(config.label_heads, settings.smoothing, task.multilabel)
    targets = objective.targets({head: torch.from_numpy(values) for head, values in task.targets.items()})
    optimiser = make_optimiser(
        probe, OptimiserSettings(name="adamw", lr=settings.lr, weight_decay=settings.weight_decay)
    )
    for rows, lr in _schedule(len(x), settings):
        set_lr(optimiser, lr)
        logits = torch.split(probe(x[rows]), list(config.label_heads.values()), dim=-1)
        named = dict(zip(config.label_heads, logits, strict=True))
        total, weight = objective(named, {h: t[rows] for h, t in targets.items()}, torch.ones(len(rows)))
        optimiser.zero_grad(set_to_none=True)
        loss: Tensor = total / weight
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(probe.parameters(), 1.0)
        optimiser.step()
    return FittedProbe(probe.eval(), mean, scale)


def probe_out_of_fold(
    frames: npt.NDArray[np.float32], task: Task, config: ViViTConfig, folds: Folds, settings: ProbeSettings
) -> Floats:
    """Logits of every clip by probes that never saw its fold, ``(repeats, n, classes)``."""
    found = np.zeros((len(folds.repeats), len(task), task.width))
    for repeat, pairs in enumerate(folds.repeats):
        for fit, scored in pairs:
            fitted = fit_probe(frames[fit], task.take(fit), config, settings)
            found[repeat, scored] = fitted(frames[scored])
    return found


def _schedule(count: int, settings: ProbeSettings) -> list[tuple[Tensor, float]]:
    """Rows and learning rate of every step."""
    draw = np.random.default_rng(seed_of("batches", settings.seed))
    batches: list[Any] = []
    for _ in range(settings.epochs):
        order = draw.permutation(count)
        batches += np.array_split(order, max(1, round(count / settings.batch)))
    total, warmup = len(batches), max(1, len(batches) // 10)
    rates = []
    for step in range(total):
        ramp = min(1.0, (step + 1) / warmup)
        done = max(0, step - warmup) / max(1, total - warmup)
        rates.append(settings.lr * ramp * (1 + np.cos(np.pi * done)) / 2)
    return [(torch.from_numpy(rows), float(lr)) for rows, lr in zip(batches, rates, strict=True)]

"""Candidates that learn from pixels: a small ViViT from scratch, or everything fine-tuned, fold by fold.

Clips are decoded once, in a few random cuts each, and all folds learn from those: on few clips that costs
little variety, and decoding would be nearly all of the time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from torch import Tensor

from tubelet.clips import ClipDecoder, seed_of
from tubelet.clips.decoder import REFERENCE
from tubelet.training.few.folds import Folds
from tubelet.training.few.task import Floats, Ints, Task
from tubelet.training.forward import Forward
from tubelet.training.losses import as_heads
from tubelet.training.optim import clip_gradients, make_optimiser, set_lr
from tubelet.training.plan import Plan
from tubelet.training.recipe import Recipe
from tubelet.training.schedule import Schedule
from tubelet.training.stream import StreamConfig
from tubelet.vivit import ViViT, ViViTConfig

# Random cuts of each clip that all epochs share: at most so many, and as many as fit into this memory.
DRAWS, MEMORY_BYTES = 8, 1 << 30
# Clips decoded by one task of the cluster.
_CHUNK = 16


@dataclass(frozen=True)
class PixelTask:
    """What such a candidate is fitted with.

    Attributes:
        recipe: with ``max_steps`` set.
        table: the rows' columns that the decoder needs.
        config, weights: the model that each fold starts from; without weights, drawn from the recipe's seed.
    """

    recipe: Recipe
    stream: StreamConfig
    table: pa.Table
    task: Task
    config: ViViTConfig
    weights: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Clips:
    """Decoded clips, uint8 ``(n, draws, tokens, bytes)``: random ``cuts``, test ``views``; who ``failed``."""

    cuts: npt.NDArray[np.uint8]
    views: npt.NDArray[np.uint8]
    failed: npt.NDArray[np.bool_]


def decode(pixels: PixelTask) -> Clips:
    """The clips of all rows, decoded by the whole cluster."""
    table, stream = pixels.table.select(REFERENCE), pixels.stream
    draws = draws_that_fit(len(table), stream)
    remote = ray.remote(num_cpus=1)(_decode)
    starts = range(0, len(table), _CHUNK)
    parts = ray.get([remote.remote(table.slice(start, _CHUNK), stream, draws) for start in starts])
    return Clips(*(np.concatenate([part[i] for part in parts]) for i in range(3)))


def trained_out_of_fold(pixels: PixelTask, clips: Clips, folds: Folds) -> Floats:
    """Logits of every clip by models that never saw its fold, ``(repeats, n, classes)``; folds at once."""
    shared, given = ray.put(clips), ray.put(pixels)
    remote = ray.remote(num_cpus=1, num_gpus=_gpus())(_fold)
    found = np.zeros((len(folds.repeats), len(pixels.task), pixels.task.width))
    for repeat, pairs in enumerate(folds.repeats):
        waiting = [remote.remote(given, shared, fit, scored) for fit, scored in pairs]
        for (_, scored), logits in zip(pairs, ray.get(waiting), strict=True):
            found[repeat, scored] = logits
    return found


def seconds_per_step(pixels: PixelTask, clips: Clips, steps: int = 4) -> float:
    """What one step takes on this cluster where all its CPUs, or GPUs, have such work."""
    remote = ray.remote(num_cpus=1, num_gpus=_gpus())(_timed)
    rows = np.arange(len(pixels.task), dtype=np.int64)
    count = folds_at_once(5)
    given, shared = ray.put(pixels), ray.put(clips)
    return float(max(ray.get([remote.remote(given, shared, rows, steps) for _ in range(count)])))


def folds_at_once(folds: int) -> int:
    """How many of them the cluster trains together: one on each GPU, where there are none on each CPU."""
    found = ray.cluster_resources()
    return max(1, min(int(found.get("GPU" if _gpus() else "CPU", 1)), folds))


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0) > 0)


def draws_that_fit(clips: int, stream: StreamConfig) -> int:
    """Random cuts of each of so many clips."""
    one = stream.spec.tokens * stream.spec.token_bytes
    each = MEMORY_BYTES // max(clips * one, 1) - stream.views[0] * stream.views[1]
    return int(np.clip(each, 1, DRAWS))


def _decode(table: pa.Table, stream: StreamConfig, draws: int = DRAWS) -> tuple[Any, Any, Any]:
    rows = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    decoder = ClipDecoder(
        stream.spec,
        views=stream.views,
        train=stream.crop,
        draws=draws,
        seed=stream.seed,
        storage=stream.storage,
        limits=stream.limits,
    )
    try:
        found = decoder(rows)
    finally:
        decoder.close()
    return found["tubelets"][:, :draws], found["tubelets"][:, draws:], found["failed"]


def _fold(pixels: PixelTask, clips: Clips, fit: Ints, scored: Ints) -> Floats:
    """Train on the rows ``fit``; logits of the rows ``scored``."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _train(pixels, clips, fit, device, pixels.recipe.max_steps or 1)
    found = np.zeros((len(scored), pixels.task.width))
    with torch.inference_mode():
        for start in range(0, len(scored), 8):
            rows = scored[start : start + 8]
            x = torch.from_numpy(clips.views[rows]).to(device)
            logits = as_heads(model(x.flatten(0, 1)), model.config.label_heads)
            whole = torch.cat(list(logits.values()), -1).float().reshape(*x.shape[:2], -1)
            found[start : start + 8] = whole.mean(1).cpu().numpy()
    return found


def _timed(pixels: PixelTask, clips: Clips, rows: Ints, steps: int) -> float:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _train(pixels, clips, rows, device, 1)
    started_s = time.monotonic()
    _train(pixels, clips, rows, device, steps)
    return (time.monotonic() - started_s) / steps


def _train(pixels: PixelTask, clips: Clips, fit: Ints, device: torch.device, steps: int) -> ViViT:
    """The recipe's steps on the rows ``fit``, one rank's arithmetic; in evaluation mode after."""
    recipe = pixels.recipe
    torch.manual_seed(recipe.seed)
    model = ViViT(pixels.config)
    if pixels.weights is not None:
        model.load_state_dict(pixels.weights)
    model = model.to(device).train()
    forward = Forward(recipe, model.config, pixels.task.targets, device)
    optimiser = make_optimiser(model, recipe.optimiser)
    lr_of = Schedule.of(recipe, len(fit))
    plan = Plan(pixels.table.take(pa.array(fit)), recipe.batch, recipe.seed, None)
    keys = pixels.table["key"].to_numpy(zero_copy_only=False)
    for step in range(steps):
        set_lr(optimiser, lr_of(step))
        index, epochs, repeats = plan.samples(step)
        rows = fit[index]
        batch = {
            "tubelets": clips.cuts[rows, epochs % clips.cuts.shape[1]],
            "weight": np.where(clips.failed[rows], 0.0, 1.0).astype(np.float32),
            "index": rows,
            "epoch": epochs,
            "repeat": repeats,
            "key": keys[rows],
        }
        torch.manual_seed(seed_of("step", recipe.seed, step, 0, 0))
        sums = forward(model, batch, len(rows), forward.mix_of(step))
        if float(sums[1].detach()) == 0:
            continue
        optimiser.zero_grad(set_to_none=True)
        loss: Tensor = sums[0] / sums[1].detach()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(model.parameters(), recipe.optimiser.clip_norm)
        optimiser.step()
    return model.eval()


def fitted_recipe(base: Recipe, spec_table: pa.Table, *, steps: int) -> Recipe:
    """The recipe ``tiny`` fitted to a set: clips span the usual video, pictures are no larger than its own.

    Args:
        base: the recipe to fit.
        spec_table: rows of a manifest with ``frames``, ``width``, ``height``.
    """

    def middle(name: str) -> float | None:
        values = [v for v in spec_table[name].to_pylist() if v]
        return float(np.median(values)) if values else None

    frames, sides = middle("frames"), [middle("width"), middle("height")]
    stride = 4 if frames is None else int(np.clip(frames // base.frames, 1, 4))
    short = min(side for side in sides if side) if all(sides) else 64
    size = 64 if short >= 64 else 48
    changes = {"stride": stride, "size": size, "short_side": round(size * 8 / 7), "max_steps": steps}
    return base.model_copy(update=changes)

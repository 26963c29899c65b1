"""Attention rollout over space and time: which tubelets a prediction drew on.

Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020): each layer passes on half of
a token itself and half of what it attends to (heads averaged). A factorised model is the product of its
attentions in the order it applies them, so one row vector is carried from the pooled output back to the
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.layers import Attention, AttentionPool, Rope, rotate
from tubelet.vivit.model import Encoder, ViViT
from tubelet.vivit.tubelets import sample_frames_uniformly

Weights = dict[str, Tensor]


@torch.no_grad()
def attention_rollout(model: ViViT, x: Tensor) -> Tensor:
    """How much each tubelet contributes, `(B, n_t, n_h, n_w)`, not negative and summing to 1 per clip.

    `x` as for the model's `forward`. Attention over all tokens of a clip is held for every layer (averaged
    over the heads): 0.5 GB for one clip of Model 1 at B/16x2.
    """
    grid = model.config.grid
    was_training = model.training
    with _recorded(model.eval()) as seen:
        model(x)
    model.train(was_training)
    inner = _through(model.encoder, seen)
    if model.config.factorised_encoder:
        frames = inner.new_full(inner.shape[:2], 1 / grid[0])
        if model.temporal_encoder is not None:
            frames = _through(model.temporal_encoder, seen)[:, 0]
        elif model.frame_pool is not None:
            frames = seen[model.frame_pool]["pool"]
        inner = inner / inner.sum(2, keepdim=True) * (frames / frames.sum(1, keepdim=True))[..., None]
    rolled = inner.reshape(inner.shape[0], *grid)
    return rolled / rolled.sum((1, 2, 3), keepdim=True)


def heat_maps(rollout: Tensor, config: ViViTConfig) -> Tensor:
    """The rollout as maps over the frames, `(B, T, H, W)` in 0…1; 1 is the clip's largest value."""
    _, h, w = config.tubelet
    _, n_h, n_w = config.grid
    maps = F.interpolate(rollout, size=(n_h * h, n_w * w), mode="bilinear", align_corners=False)
    # Pixels that no tubelet covers take their neighbour's value.
    maps = F.pad(maps, (0, config.width - n_w * w, 0, config.height - n_h * h), mode="replicate")
    return (maps / maps.amax((1, 2, 3), keepdim=True))[:, _time_index_of_frames(config)]


def _time_index_of_frames(config: ViViTConfig) -> list[int]:
    if config.tokeniser == "tubelet":
        return [min(frame // config.tubelet[0], config.grid[0] - 1) for frame in range(config.frames)]
    sampled = sample_frames_uniformly(config.frames, config.grid[0])
    return [min(range(len(sampled)), key=lambda i: abs(sampled[i] - frame)) for frame in range(config.frames)]


@contextmanager
def _recorded(model: ViViT) -> Iterator[dict[nn.Module, Weights]]:
    """The attention weights of every `Attention` of the model in the forward passes of this block."""
    seen: dict[nn.Module, Weights] = {}

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, AttentionPool):
            seen[module] = {"pool": _pool_weights(module, args[0])}
        elif isinstance(module, Attention):
            seen[module] = attention_weights(module, *args)

    kinds = (Attention, AttentionPool)
    handles = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, kinds)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(attention: Attention, x: Tensor, rope: Rope | None = None) -> Weights:
    """Softmax weights averaged over heads: "space" `(B, T, P, P)`, "time" `(B, P, T, T)`."""
    # One head at a time: all of them would be heads times the memory.
    d, heads = x.shape[-1], attention.heads
    size = d // heads
    q, k, _ = (part.float() for part in attention.project(x, 0, d))
    axes = {"space": ["space"] * heads, "time": ["time"] * heads}.get(attention.axis)
    axes = axes or ["time"] * (heads // 2) + ["space"] * (heads // 2)
    found: Weights = {}
    for head, axis in enumerate(axes):
        q_h, k_h = (part[..., head * size : (head + 1) * size] for part in (q, k))
        if axis == "time":
            q_h, k_h = q_h.transpose(1, 2), k_h.transpose(1, 2)
        elif rope is not None:
            q_h, k_h = rotate(q_h, rope), rotate(k_h, rope)
        weights = (q_h @ k_h.transpose(-1, -2) / size**0.5).softmax(-1) / axes.count(axis)
        found[axis] = found[axis] + weights if axis in found else weights
    return found


def _through(encoder: Encoder, seen: dict[nn.Module, Weights]) -> Tensor:
    """What each token (without CLS and registers) contributes to an encoder's pooled output: `(B, T, P)`."""
    first = next(module for module in encoder.modules() if isinstance(module, Attention))
    row = _start(seen[first], encoder, seen)
    for block in reversed(encoder.blocks):
        for attention in reversed(_in_order(block)):
            row = 0.5 * row + 0.5 * _step(row, seen[attention])
    return row[:, :, encoder.prefix :]


def _in_order(block: nn.Module) -> list[Attention]:
    found = [module for module in block.modules() if isinstance(module, Attention)]
    return found if getattr(block, "space_first", True) else found[::-1]


def _pool_weights(pool: AttentionPool, x: Tensor) -> Tensor:
    """What the learned query attends to, averaged over heads: `(B, P)` of the tokens `(…, P, d)`."""
    tokens, d, heads = x.flatten(0, -3).float(), x.shape[-1], pool.attention.heads
    weight, bias = pool.attention.qkv.weight.float(), pool.attention.qkv.bias.float()
    q = F.linear(pool.probe.float(), weight[:d], bias[:d]).view(1, 1, heads, -1)
    k = F.linear(tokens, weight[d : 2 * d], bias[d : 2 * d]).view(*tokens.shape[:2], heads, -1)
    scores: Tensor = (q * k).sum(-1) / k.shape[-1] ** 0.5
    return scores.softmax(1).mean(2)


def _start(weights: Weights, encoder: Encoder, seen: dict[nn.Module, Weights]) -> Tensor:
    """The pooling as a row over the tokens `(B, T, P)`: CLS, or all alike; of each time index in Model 2."""
    if "space" in weights:
        B, T, P, _ = weights["space"].shape
    else:
        B, P, T, _ = weights["time"].shape
    like = next(iter(weights.values()))
    row = like.new_zeros(B, T, P)
    if encoder.classifier in ("token", "0"):
        row[:, :, 0] = 1
    elif encoder.classifier == "token_gap":
        row[:, :, 0], row[:, :, encoder.prefix :] = 0.5, 0.5 / (P - encoder.prefix)
    elif encoder.attention_pool is not None:
        row[:, :, encoder.prefix :] = seen[encoder.attention_pool]["pool"].view(B, T, -1)
    else:
        row[:, :, encoder.prefix :] = 1 / (P - encoder.prefix)
    return row


def _step(row: Tensor, weights: Weights) -> Tensor:
    """The row times the attention; with two axes, half of the heads each."""
    found: list[Tensor] = []
    if "space" in weights:
        found.append(torch.einsum("btp,btpq->btq", row, weights["space"]))
    if "time" in weights:
        found.append(torch.einsum("btp,bpts->bsp", row, weights["time"]))
    return sum(found[1:], found[0]) / len(found)

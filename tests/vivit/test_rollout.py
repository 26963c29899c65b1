"""Rollout equals the product of all attentions written out over all tokens, and finds what was looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.vivit import randomised
from torch import Tensor
from tubelet.vivit import ViViT, ViViTConfig, attention_rollout, heat_maps
from tubelet.vivit.layers import Attention

VARIANTS = ("model1", "model2", "model3", "model4", "average")


def build(variant: str, **changes: Any) -> ViViT:
    fields = {"classes": 5, "dim": 32, "mlp": 64} | changes
    return randomised(ViViT(ViViTConfig.preset(f"tiny-8x2-{variant}", **fields)))


def written_out(attention: Attention, x: Tensor) -> Tensor:
    """One layer's weights between all T·P tokens, from masked scores; heads averaged."""
    T, P, d = x.shape
    q, k, _ = attention.qkv(x.reshape(T * P, d)).view(T * P, 3, attention.heads, -1).permute(1, 2, 0, 3)
    scores = q @ k.transpose(1, 2) / (d // attention.heads) ** 0.5
    time, place = torch.arange(T * P) // P, torch.arange(T * P) % P
    same_time, same_place = time[:, None] == time, place[:, None] == place
    half = attention.heads // 2
    allowed = torch.stack([same_time] * attention.heads)
    if attention.axis == "time":
        allowed = torch.stack([same_place] * attention.heads)
    elif attention.axis == "half":
        allowed = torch.stack([same_place] * half + [same_time] * half)
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1).mean(0)


def naive(encoder: torch.nn.Module, x: Tensor, start: Tensor) -> Tensor:
    """The encoder's rollout of one clip `(T, P, d)` as a full matrix, times the pooling row."""
    inputs: list[tuple[Attention, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0][0])))
        for module in encoder.modules()
        if isinstance(module, Attention)
    ]
    encoder(x[None])
    for handle in handles:
        handle.remove()
    total = torch.eye(start.shape[0])
    for attention, seen in inputs:
        total = (0.5 * torch.eye(start.shape[0]) + 0.5 * written_out(attention, seen)) @ total
    return start @ total


@pytest.mark.parametrize("order", ["space_time", "time_space"])
@pytest.mark.parametrize("variant", ["model3", "model4"])
@torch.no_grad()
def test_factorised_rollout_is_the_product_of_full_matrices(variant: str, order: str) -> None:
    model = build(variant, attention_order=order)
    x = torch.randn(1, 64, 384)
    wanted = naive(model.encoder, model.embed(x)[0].view(4, 16, 32), torch.full((64,), 1 / 64))
    torch.testing.assert_close(attention_rollout(model, x).flatten(), wanted / wanted.sum())


@torch.no_grad()
def test_joint_rollout_starts_at_cls() -> None:
    model = build("model1")
    x = torch.randn(1, 64, 384)
    wanted = naive(model.encoder, model.embed(x)[0][None], torch.eye(65)[0])[1:]
    torch.testing.assert_close(attention_rollout(model, x).flatten(), wanted / wanted.sum())


@torch.no_grad()
def test_model_2_weighs_frames_by_its_temporal_encoder() -> None:
    model = build("model2")
    x = torch.randn(1, 64, 384)
    tokens = model.embed(x)[0].view(4, 16, 32)
    places = torch.stack([naive(model.encoder, frame[None], torch.eye(17)[0])[1:] for frame in tokens])
    pooled = model.encoder(tokens[None])[0, :, 0]
    times = naive(model.temporal_encoder, pooled[None], torch.eye(5)[0])[1:]
    wanted = places / places.sum(1, keepdim=True) * (times / times.sum())[:, None]
    torch.testing.assert_close(attention_rollout(model, x).flatten(), wanted.flatten())


@pytest.mark.parametrize("variant", VARIANTS)
def test_clips_keep_their_own_and_the_model_is_left_as_it_was(variant: str) -> None:
    model = build(variant, dropout=0.1).train()
    x = torch.randn(3, 64, 384)
    rolled = attention_rollout(model, x)
    assert model.training
    assert rolled.shape == (3, 4, 4, 4)
    torch.testing.assert_close(rolled.sum((1, 2, 3)), torch.ones(3))
    assert rolled.min() >= 0
    torch.testing.assert_close(attention_rollout(model, x[1:2])[0], rolled[1], atol=1e-5, rtol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_planted_attention_is_found() -> None:
    """Queries and keys that single out bright tubelets make the map peak where the bright one is."""
    model = build("model1", layers=1)
    attention = model.encoder.blocks[0].attention
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight[0] = 1.0  # channel 0 is brightness
        for norm in (model.encoder.blocks[0].norm1, model.encoder.norm):
            norm.weight.fill_(1.0)
        attention.qkv.bias[:32] = 1.0
        attention.qkv.weight[32:64, 0] = 5.0
    clip = torch.zeros(1, 8, 32, 32, 3)
    clip[:, 4:6, 8:16, 24:32] = 1.0
    rolled = attention_rollout(model, clip)
    assert rolled.argmax() == 2 * 16 + 1 * 4 + 3
    maps = heat_maps(rolled, model.config)
    assert maps.shape == (1, 8, 32, 32)
    assert maps.max() == 1
    assert maps[0, 4, 11, 27] > 0.9 > 0.5 > maps[0, 0].max()
    assert torch.equal(maps[0, 4], maps[0, 5])


def test_heat_maps_cover_remainders_and_frames_left_out() -> None:
    config = ViViTConfig.preset("tiny-8x2-model1", classes=2, frames=9, height=36, width=42)
    maps = heat_maps(torch.rand(2, *config.grid), config)
    assert maps.shape == (2, 9, 36, 42)
    assert torch.equal(maps[:, 8], maps[:, 7])
    assert torch.equal(maps[..., 40:], maps[..., 39:40].expand(-1, -1, -1, 2))
    uniform = config.replace(tokeniser="uniform", sampled_frames=2, tubelet=(1, 8, 8))
    maps = heat_maps(torch.rand(1, *uniform.grid), uniform)  # frames 3 and 6 are embedded
    assert torch.equal(maps[:, 0], maps[:, 4])
    assert torch.equal(maps[:, 5], maps[:, 8])
    assert not torch.equal(maps[:, 4], maps[:, 5])

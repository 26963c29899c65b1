"""Weights from scratch: the distributions of the original, and a temporal attention that can train."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tubelet.vivit import ViViT, ViViTConfig, initialise, to_scenic


def drawn(variant: str = "model3", **options: str) -> tuple[ViViT, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = ViViTConfig.preset(f"tiny-8x2-{variant}", classes=5, dim=128, mlp=256, pre_logits=96)
    model = ViViT(config)
    initialise(model, **options)
    return model, to_scenic(model)


def test_kernels_have_the_originals_spread() -> None:
    """Query, key and value each as a 128x128 matrix, not as one of 384x128."""
    _, arrays = drawn()
    block = "Transformer/encoderblock_1"
    for name in ("query", "key", "value", "out"):
        kernel = arrays[f"{block}/MultiHeadDotProductAttention_time/{name}/kernel"]
        assert kernel.abs().max() <= math.sqrt(6 / 256)
        assert kernel.std() == pytest.approx(math.sqrt(2 / 256), rel=0.03)
    assert arrays[f"{block}/MlpBlock/Dense_0/kernel"].std() == pytest.approx(math.sqrt(2 / 384), rel=0.03)
    assert 0 < arrays[f"{block}/MlpBlock/Dense_0/bias"].std() < 2e-6
    assert arrays["Transformer/posembed_input/pos_embedding"].std() == pytest.approx(0.02, rel=0.05)
    for name, inputs in (("embedding", 2 * 8 * 8 * 3), ("pre_logits", 128)):
        kernel = arrays[f"{name}/kernel"]
        assert kernel.std() == pytest.approx(math.sqrt(1 / inputs), rel=0.03)
        assert kernel.abs().max() <= 2 * math.sqrt(1 / inputs) / 0.8796 + 1e-6  # truncated at two deviations


@pytest.mark.parametrize("variant", ["model1", "model2", "model3", "model4", "average"])
def test_zeros_and_ones(variant: str) -> None:
    model, arrays = drawn(variant)
    for name, value in arrays.items():
        if name.startswith(("cls", "output_projection")) or ("Attention" in name and name.endswith("bias")):
            assert not value.any(), name
        if "Norm" in name or "encoder_norm" in name:
            assert torch.equal(value, torch.full_like(value, float(name.endswith("scale")))), name
    assert not model(torch.randn(1, 64, 384)).any()


def test_embedding_over_time() -> None:
    """Central: frame t // 2 of the tubelet, in all columns (the original zeros columns instead)."""
    _, average = drawn(embedding="average")
    assert torch.equal(average["embedding/kernel"][0], average["embedding/kernel"][1])
    _, central = drawn(embedding="central")
    assert not central["embedding/kernel"][0].any()
    assert central["embedding/kernel"][1].abs().amax((0, 2, 3)).min() > 0


def test_zero_output_trains_and_all_zeros_do_not() -> None:
    moved = {}
    for temporal in ("zero_output", "zero"):
        model, _ = drawn(temporal_attention=temporal)
        torch.nn.init.normal_(model.head.weight)
        clip = torch.randn(4, 64, 384)
        attention = model.encoder.blocks[0].attention_time
        assert not attention(torch.randn(1, 4, 16, 128)).any()
        before = [parameter.clone() for parameter in attention.parameters()]
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(model(clip), torch.arange(4)).backward()
            optimiser.step()
        names = [name for name, _ in attention.named_parameters()]
        now = attention.parameters()
        moved[temporal] = {
            n for n, old, new in zip(names, before, now, strict=True) if not torch.equal(old, new)
        }
    assert moved["zero_output"] == {"qkv.weight", "qkv.bias", "out.weight", "out.bias"}
    assert moved["zero"] == {"out.bias"}


def test_seed_decides() -> None:
    _, one = drawn()
    _, two = drawn()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_meta_device_and_back() -> None:
    with torch.device("meta"):
        model = ViViT(ViViTConfig.preset("tiny-8x2-model2", classes=5))
    assert all(parameter.is_meta for parameter in model.parameters())
    wanted = ViViT(model.config)
    torch.manual_seed(0)
    model.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(0)
    wanted.reset_parameters()
    for ours, theirs in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_unknown_ways_are_refused() -> None:
    model = ViViT(ViViTConfig.preset("tiny-8x2-model3", classes=5))
    with pytest.raises(ValueError, match="embedding='middle'"):
        initialise(model, embedding="middle")
    with pytest.raises(ValueError, match="temporal_attention='none'"):
        initialise(model, temporal_attention="none")

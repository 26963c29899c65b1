"""Exported, compiled, in bfloat16, under autocast, DDP and FSDP2, a model computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.vivit import randomised
from torch import Tensor
from tubelet.vivit import ViViT, ViViTConfig, fold_normalisation
from tubelet.vivit.layers import Attention

VARIANTS = ("model1", "model2", "model3", "model4", "average")
# Root mean square difference from float32 over the logits' standard deviation: 0.003 to 0.018 seen.
BF16_BOUND = 0.03


def build(variant: str, **changes: Any) -> ViViT:
    fields = {"classes": 5, "layers": 1, "temporal_layers": 1, "dim": 32, "mlp": 64} | changes
    return randomised(ViViT(ViViTConfig.preset(f"tiny-8x2-{variant}", **fields)))


def tubelets(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 64, 384), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_with_any_batch(variant: str) -> None:
    model = build(variant)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (tubelets(2),), dynamic_shapes={"x": {0: batch}})
    x = tubelets(3)
    torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_captures_one_graph(variant: str) -> None:
    """Forward and gradients through one graph without breaks; generating code for it is the slow test's."""
    model = build(variant)
    compiled = torch.compile(deepcopy(model), backend="aot_eager", fullgraph=True)
    _same_forward_and_gradients(model, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_generates_equal_code(variant: str) -> None:
    """Needs a C++ compiler, and tens of seconds a variant on two cores."""
    model = build(variant)
    _same_forward_and_gradients(model, torch.compile(deepcopy(model), fullgraph=True))


def _same_forward_and_gradients(
    model: torch.nn.Module, other: torch.nn.Module, precision: float = 1e-5
) -> None:
    outputs = [one(tubelets()) for one in (model, other)]
    torch.testing.assert_close(outputs[1], outputs[0], atol=precision, rtol=precision)
    for output in outputs:
        output.square().sum().backward()
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all(ours.grad is not None for ours, _ in pairs)
    for ours, theirs in pairs:
        gradient = theirs.grad.full_tensor() if hasattr(theirs.grad, "full_tensor") else theirs.grad
        torch.testing.assert_close(gradient, ours.grad, atol=10 * precision, rtol=10 * precision)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_bfloat16_is_within_the_bound(variant: str) -> None:
    model = build(variant, layers=2, temporal_layers=4, dim=64, mlp=128, classes=16)
    wanted = model(tubelets(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(tubelets(8)).float()
    half = deepcopy(model).to(torch.bfloat16)(tubelets(8)).float()
    for found in (mixed, half):
        assert ((found - wanted).square().mean().sqrt() / wanted.std()).item() < BF16_BOUND


@torch.inference_mode()
def test_uint8_loses_nothing_to_bfloat16_before_the_first_product() -> None:
    """x - 127.5 is exact in bfloat16; weights that took 0...255 as it is would amplify their rounding."""
    model = build("model1")
    wanted = model.embed(tubelets())
    half = deepcopy(model).to(torch.bfloat16)
    from_uint8 = (half.embed(tubelets()) - wanted).square().mean().sqrt()
    from_float = (half.embed((tubelets() / 127.5 - 1).bfloat16()) - wanted).square().mean().sqrt()
    assert from_uint8 < 1.2 * from_float
    folded = fold_normalisation(deepcopy(model)).to(torch.bfloat16)
    assert (folded.embed(tubelets()) - wanted).square().mean().sqrt() < 1.2 * from_float


@pytest.mark.parametrize("axis", ["space", "time", "half"])
@torch.inference_mode()
def test_attention_copies_nothing(axis: str) -> None:
    """Queries, keys and values reach the fused kernel as views; only a projection's bias is copied."""
    attention, x = Attention(48, 4, axis), torch.randn(2, 3, 5, 48)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(x)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == (2 if axis == "half" else 1)
    assert calls.get("aten::copy_", 0) <= calls["aten::addmm"]
    assert not {"aten::clone", "aten::contiguous"} & set(calls)


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("variant", VARIANTS)
def test_ddp_leaves_no_parameter_without_gradient(variant: str, one_process_group: None) -> None:
    """DDP waits for ever for a parameter that no loss reaches."""
    model = build(variant)
    _same_forward_and_gradients(model, torch.nn.parallel.DistributedDataParallel(deepcopy(model)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_fsdp2_shards_blocks(variant: str, one_process_group: None) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp", reason="torch 2.4 and 2.5 have FSDP2 elsewhere")
    from torch.distributed.device_mesh import init_device_mesh

    model = build(variant)
    sharded, mesh = deepcopy(model), init_device_mesh("cpu", (1,))
    for encoder in (sharded.encoder, sharded.temporal_encoder):
        for block in encoder.blocks if encoder is not None else ():
            fsdp.fully_shard(block, mesh=mesh)
    fsdp.fully_shard(sharded, mesh=mesh)
    sharded.activation_checkpointing(True)
    _same_forward_and_gradients(model, sharded.train())

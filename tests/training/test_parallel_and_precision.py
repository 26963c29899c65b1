"""Knobs that must not change what is learned: sharding, activation checkpointing, half precision, compiling;
and frozen parts.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.training import Run, run_on_ranks, weights_of
from tubelet.training.prepare import INITIAL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 6
COMMON = ("optimiser.name=adamw", "ema=0.9", "dropout=0.1", "droplayer=0.2")
# Compiled code draws other random numbers for dropout.
NOT_RANDOM = ("optimiser.name=adamw", "ema=0.9", "dropout=0", "droplayer=0")


@pytest.fixture(scope="module")
def out(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on two ranks in several ways, one folder each."""
    folder = tmp_path_factory.mktemp("knobs")
    ways = {
        "ddp": COMMON,
        "fsdp2": (*COMMON, "strategy=fsdp2"),
        "checkpointing": (*COMMON, "activation_checkpointing=true"),
        "bf16": (*COMMON, "precision=bf16"),
        "fp16": (*COMMON, "precision=fp16"),
        "not random": NOT_RANDOM,
        "compiled": (*NOT_RANDOM, "compile=true"),
        "head": (*COMMON, "freeze=backbone"),
    }
    runs = [Run(str(folder / name), None, overrides) for name, overrides in ways.items()]
    for name in ("fsdp2", "fp16"):
        cut = str(folder / f"{name} cut")
        runs += [Run(cut, 3, ways[name]), Run(cut, None, ways[name])]
    run_on_ranks(2, manifest, runs)
    return folder


def _model(out: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / name / f"checkpoints/step-{STEPS:08d}" / "model.safetensors")


def _apart(out: Path, name: str, other: str = "ddp") -> float:
    a, b = (weights_of(str(out / each), STEPS) for each in (other, name))
    assert a.keys() == b.keys()
    return _furthest(a, b)


def _furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def test_shards_learn_what_replicas_learn(out: Path) -> None:
    assert _apart(out, "fsdp2") < 1e-5


@pytest.mark.parametrize("way", ["fsdp2", "fp16"])
def test_run_resumes_to_the_same_bits(out: Path, way: str) -> None:
    """Sharded, and with a scale of the loss that is part of the state."""
    a, b = (weights_of(str(out / name), STEPS) for name in (way, f"{way} cut"))
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_activation_checkpointing_changes_nothing(out: Path) -> None:
    assert _apart(out, "checkpointing") < 1e-6


@pytest.mark.parametrize("way", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(out: Path, way: str) -> None:
    """Of fp16, the first steps may be left out, until the scale of the loss fits."""
    assert 0 < _furthest(_model(out, "ddp"), _model(out, way)) < 0.05


def test_compiled_model_learns_nearly_the_same(out: Path) -> None:
    assert 0 < _apart(out, "compiled", "not random") < 1e-4


def test_only_the_head_learns(out: Path) -> None:
    before = load_file(out / "head" / INITIAL / "model.safetensors")
    after = _model(out, "head")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("head" in name for name in changed), changed

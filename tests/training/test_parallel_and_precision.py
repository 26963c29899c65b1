"""Knobs that must not change what is learned: sharding, activation checkpointing, bf16; and frozen parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_support import Run, run_on_ranks, weights_of

from pipeline.training.prepare import INITIAL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 6
COMMON = ("optimiser.name=adamw", "ema=0.9", "dropout=0.1", "droplayer=0.2")


@pytest.fixture(scope="module")
def out(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on two ranks in several ways, one folder each."""
    folder = tmp_path_factory.mktemp("knobs")
    ways = {
        "ddp": COMMON,
        "fsdp2": (*COMMON, "strategy=fsdp2"),
        "checkpointing": (*COMMON, "activation_checkpointing=true"),
        "bf16": (*COMMON, "precision=bf16"),
        "head": (*COMMON, "freeze=backbone"),
    }
    runs = [Run(str(folder / name), None, overrides) for name, overrides in ways.items()]
    cut = str(folder / "fsdp2 cut")
    runs += [Run(cut, 3, ways["fsdp2"]), Run(cut, None, ways["fsdp2"])]
    run_on_ranks(2, manifest, runs)
    return folder


def _apart(out: Path, name: str) -> float:
    a, b = (weights_of(str(out / each), STEPS) for each in ("ddp", name))
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def test_shards_learn_what_replicas_learn(out: Path) -> None:
    assert _apart(out, "fsdp2") < 1e-5


def test_sharded_run_resumes_to_the_same_bits(out: Path) -> None:
    a, b = (weights_of(str(out / name), STEPS) for name in ("fsdp2", "fsdp2 cut"))
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_activation_checkpointing_changes_nothing(out: Path) -> None:
    assert _apart(out, "checkpointing") < 1e-6


def test_bf16_learns_nearly_the_same(out: Path) -> None:
    assert 0 < _apart(out, "bf16") < 0.05


def test_only_the_head_learns(out: Path) -> None:
    before = load_file(out / "head" / INITIAL / "model.safetensors")
    after = load_file(out / "head" / f"checkpoints/step-{STEPS:08d}" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("head" in name for name in changed), changed

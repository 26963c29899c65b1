"""A run that was cut off and resumed ends with the same bits as one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.training import Run, run_on_ranks, run_rank, weights_of, write_corpus

# Everything that has a state or draws numbers.
ALL_KNOBS = (
    "optimiser.name=adamw",
    "ema=0.9",
    "dropout=0.1",
    "droplayer=0.2",
    "mixup=0.3",
    "cutmix=0.3",
    "label_smoothing=0.1",
    "colour=0.8",
    "grey=0.1",
    "augment.randaugment.layers=1",
    "flip=0.5",
    "evaluation.every=3",
    "evaluation.views=2x1",
)
UNEVEN = "sgd, accumulation, uneven ranks"
VARIANTS = {
    "everything": ALL_KNOBS,
    UNEVEN: ("optimiser.name=sgd", "lr=0.05", "accumulate=2", "batch=7"),
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    # 10 videos, so that batches straddle epochs; one is broken, so that a step is divided by fewer clips.
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 10, "val": 3}, broken=[3])


def assert_same_bits(first: str, second: str, step: int = 6) -> None:
    a, b = weights_of(first, step), weights_of(second, step)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize(
    "world", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_resumed_runs_end_with_the_same_bits(world: int, manifest: str, tmp_path: Path) -> None:
    runs = []
    for name, overrides in VARIANTS.items():
        whole, cut = str(tmp_path / name / "whole"), str(tmp_path / name / "cut")
        # Before the first checkpoint, and in the middle between two.
        runs += [Run(whole, None, overrides), Run(cut, 1, overrides), Run(cut, 5, overrides)]
        runs.append(Run(cut, None, overrides))
    moved_on = str(tmp_path / "other world")
    runs.append(Run(moved_on, 3, VARIANTS[UNEVEN]))
    run_on_ranks(world, manifest, runs)
    for name in VARIANTS:
        whole, cut = str(tmp_path / name / "whole"), str(tmp_path / name / "cut")
        assert_same_bits(whole, cut)
        moved = weights_of(whole, 4)["head.weight"]
        assert not torch.equal(moved, weights_of(whole, 6)["head.weight"]), (
            "the run must have learned something"
        )
    # Elastic: begun on these ranks, ended on one. Sums in another order, so equal up to rounding.
    run_rank(0, 1, manifest, Run(moved_on, None, VARIANTS[UNEVEN]))
    a, b = weights_of(str(tmp_path / UNEVEN / "whole"), 6), weights_of(moved_on, 6)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=name)

"""The arithmetic of `bench pipeline --plan`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tubelet.config import UserError
from tubelet_jobs.bench import BenchCommand
from tubelet_jobs.benches.sizing import Prices, Rates, size


def test_cores_gpus_and_dollars_follow_from_the_rates() -> None:
    rates = Rates("clips of ten seconds", "base", decode_per_core=10, model_per_gpu=400)
    found = size(3_600_000, 2, rates, Prices(core_hour=0.1, gpu_hour=2))
    # 500 clips a second: 50 cores decode them, and 1.25 GPUs see them.
    assert (found.cores, found.gpus, found.dollars) == (50, 2, 2 * (50 * 0.1 + 2 * 2))
    assert "500 clips/s / 10 per core = 50.00 cores" in found.lines[1]
    assert "500 clips/s / 400 per GPU = 1.25 GPUs" in found.lines[2]
    assert "2 x (50 x $0.1 + 2 x $2) = $18.00" in found.lines[3]


def test_without_gpus_the_model_takes_cores() -> None:
    rates = Rates("clips", "small", decode_per_core=10, model_per_core=40)
    found = size(360_000, 1, rates, Prices(core_hour=1))
    assert (found.cores, found.gpus, found.dollars) == (13, 0, 13.0)  # 10 + 2.5


def test_prices_are_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("core_hour: 0.02\n")
    assert Prices.of(str(file)) == Prices(core_hour=0.02)
    file.write_text("core_hours: 0.02\n")
    with pytest.raises(UserError, match="core_hour"):
        Prices.of(str(file))


def test_a_plan_wants_videos_and_hours() -> None:
    assert BenchCommand(kind="pipeline", plan=10, hours=1).plan == 10
    for given in ({"plan": 10}, {"hours": 1.0}, {"prices": "x"}, {"plan": 0, "hours": 1}):
        with pytest.raises(ValueError, match="plan"):
            BenchCommand(kind="pipeline", **given)
    with pytest.raises(ValueError, match="pipeline"):
        BenchCommand(kind="decode", plan=10, hours=1)

"""The golden cases catch what they are for: each likely mistake is far beyond the tolerance of parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.vivit import OWN_GOLDEN, Golden, config_of
from tubelet.vivit import load_scenic, model
from tubelet.vivit.layers import Attention

TOLERANCE = 5e-6


def distance(name: str, **mistake: Any) -> float:
    """Largest difference of a logit, with some settings wrong."""
    case = Golden(OWN_GOLDEN / f"{name}.npz")
    config = config_of(case.config["model"], case.config["input_shape"], case.config["num_classes"])
    ours, _ = load_scenic(case.group("params"), config.replace(**mistake))
    with torch.inference_mode():
        return (ours(case["input"]) - case["logits"]).abs().max().item()


@pytest.mark.parametrize(
    ("name", "mistake", "at_least"),
    [
        ("scenic_m1_eps_sensitive", {"layer_norm_eps": 1e-5}, 1e-2),
        ("scenic_m1_eps_sensitive", {"layer_norm_eps": 1e-12}, 1e-2),
        ("scenic_m1_tubelet_token", {"activation": "gelu"}, 2 * TOLERANCE),
        ("scenic_m3_tubelet_gap_spacefirst", {"attention_order": "time_space"}, 1e-2),
        ("scenic_m4_tubelet_gap", {"classifier": "gmp"}, 1e-2),
    ],
)
def test_wrong_setting_is_seen(name: str, mistake: dict[str, Any], at_least: float) -> None:
    assert distance(name) <= TOLERANCE
    assert distance(name, **mistake) >= at_least


def test_swapped_head_halves_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    space, time = Attention._over_space, Attention._over_time
    monkeypatch.setattr(Attention, "_over_space", time)
    monkeypatch.setattr(Attention, "_over_time", space)
    assert distance("scenic_m4_tubelet_gap") >= 1e-2


def test_evenly_spread_frames_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual linspace takes the first frame; the original never does."""
    monkeypatch.setattr(
        model, "sample_frames_uniformly", lambda frames, n: torch.linspace(0, frames - 1, n).int().tolist()
    )
    assert distance("scenic_m1_uniform_token") >= 1e-2

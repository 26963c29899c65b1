"""Parameters and multiply-accumulates equal those of the paper and of the authors' code."""

from __future__ import annotations

import runpy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tubelet.vivit import (
    PRESETS,
    ViViT,
    ViViTConfig,
    gmacs,
    macs_by_part,
    parameter_count,
    parameters_by_part,
)

# The authors' own modules at 32x224x224 with 400 classes.
PARAMETERS = {
    "b-16x2-model1": 88_954_000,
    "b-16x2-model2": 115_062_928,
    "b-16x2-model3": 117_319_312,
    "b-16x2-model4": 88_952_464,
    "b-16x2-average": 86_696_080,
    "l-16x2-model1": 307_508_624,
    "l-16x2-model2": 354_903_440,
    "l-16x2-model2-lt24": 606_827_920,
    "l-16x2-model3": 408_317_328,
    "l-16x2-model4": 307_506_576,
    "l-16x2-average": 304_498_064,
    "h-14x2-model1": 636_945_040,
    "h-14x2-model2": 710_765_200,
    "h-14x2-model3": 846_903_440,
    "h-14x2-model4": 636_942_480,
    "h-14x2-average": 632_029_840,
}
# Table 2 of the paper, and what its section 4 says of L and of 320 pixels; multiply-accumulates, called
# GFLOPs.
PAPER_GMACS = {
    "b-16x2-model1": 455.2,
    "b-16x2-model2": 284.4,
    "b-16x2-model3": 372.3,
    "b-16x2-model4": 277.1,
    "b-16x2-average": 283.9,
    "l-16x2-model1": 1446,
    "l-16x2-model2-lt24": 995.3,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_equal_the_authors(name: str) -> None:
    config = ViViTConfig.preset(name, classes=400)
    with torch.device("meta"):
        model = ViViT(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert parameter_count(config) == PARAMETERS[name]


@pytest.mark.parametrize("name", PAPER_GMACS)
def test_macs_are_within_one_percent_of_the_paper(name: str) -> None:
    assert gmacs(ViViTConfig.preset(name, classes=400)) == pytest.approx(PAPER_GMACS[name], rel=0.01)


def test_macs_are_within_one_percent_at_320_pixels() -> None:
    config = ViViTConfig.preset("l-16x2-model1", classes=400, height=320, width=320)
    assert gmacs(config) == pytest.approx(3992, rel=0.01)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny")])
def test_formula_counts_what_the_model_multiplies(name: str) -> None:
    """torch's own counter over a real forward pass; it counts additions too."""
    config = ViViTConfig.preset(name, classes=3, height=40, pre_logits=24)
    model, counter = ViViT(config).eval(), FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, config.tokens, config.token_values))
    assert counter.get_total_flops() == 2 * sum(macs_by_part(config).values())


def test_parts_of_model_3_stand_apart() -> None:
    config = ViViTConfig.preset("b-16x2-model3", classes=400)
    parts = parameters_by_part(config)
    assert parts["spatial"] == parts["temporal"] == 12 * 4 * (768 * 768 + 768)
    assert parts["mlp"] == 12 * (2 * 768 * 3072 + 768 + 3072)
    assert parts["head"] == 768 * 400 + 400
    assert macs_by_part(config)["temporal"] == 12 * (3136 * 4 * 768 * 768 + 196 * 2 * 16 * 16 * 768)


def test_table_names_every_preset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `python -m tubelet.vivit` prints."""
    monkeypatch.setattr("sys.argv", ["vivit"])
    runpy.run_module("tubelet.vivit", run_name="__main__")
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert set(PRESETS) <= set(rows)
    assert rows["b-16x2-model2"][3:5] == ["115.06", "283.34"]

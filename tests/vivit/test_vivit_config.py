"""Presets, and errors that name the field and say what would be right."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tubelet.vivit import PRESETS, ViViTConfig


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json(name: str) -> None:
    config = ViViTConfig.preset(name, classes=7)
    assert ViViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_heads_survive_json() -> None:
    config = ViViTConfig.preset("tiny-8x2-model2", heads_classes={"noun": 300, "verb": 97})
    assert config.classes == 397
    assert list(config.label_heads) == ["noun", "verb"]
    assert ViViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.replace(classes=5).label_heads == {"label": 5}


def test_model2_presets_have_four_temporal_layers() -> None:
    for name in ("b-16x2-model2", "l-16x2-model2", "h-14x2-model2"):
        assert ViViTConfig.preset(name, classes=1).temporal_layers == 4
    assert ViViTConfig.preset("l-16x2-model2-lt24", classes=1).temporal_layers == 24


def test_models_3_and_4_pool_by_mean() -> None:
    pools = {
        v: ViViTConfig.preset(f"b-16x2-{v}", classes=1).classifier for v in ("model2", "model3", "model4")
    }
    assert pools == {"model2": "token", "model3": "gap", "model4": "gap"}


@pytest.mark.parametrize(
    ("changes", "field", "right"),
    [
        ({"variant": "model4", "heads": 3, "dim": 96}, "heads=3", "even"),
        ({"variant": "model3", "classifier": "token"}, 'classifier="token"', '"gap"'),
        ({"variant": "model4", "classifier": "token"}, 'classifier="token"', '"gap"'),
        ({"tubelet": (2, 48, 8)}, "tubelet=(2, 48, 8)", "height=32"),
        ({"tubelet": (16, 8, 8)}, "tubelet=(16, 8, 8)", "frames=8"),
        ({"tubelet": (8, 8)}, "tubelet=", "three numbers"),
        ({"heads": 5}, "heads=5", "divide dim=64"),
        ({"classes": 0}, "classes=0", "at least one"),
        ({"classes": 4, "heads_classes": {"noun": 3, "verb": 2}}, "classes=4", "5"),
        ({"layers": 0}, "layers=0", "at least 1"),
        ({"layers": 2.0}, "layers=2.0", "whole number"),
        ({"dropout": 1.0}, "dropout=1.0", "less than 1"),
        ({"variant": "model5"}, "variant='model5'", "model1"),
        ({"classifier": "cls"}, "classifier='cls'", "token"),
        ({"tokeniser": "uniform", "sampled_frames": 4}, "tubelet=(2, 8, 8)", "set its first part to 1"),
        ({"tokeniser": "uniform", "tubelet": (1, 8, 8)}, "sampled_frames=None", "frames=8"),
        ({"sampled_frames": 4}, "sampled_frames=4", 'tokeniser="uniform"'),
        ({"std": (0.5, 0.0, 0.5)}, "std=", "greater than 0"),
        ({"layer": 3}, "layer", "layers"),
    ],
)
def test_wrong_setting_is_refused(changes: dict[str, Any], field: str, right: str) -> None:
    good = ViViTConfig.preset("tiny-8x2-model1", classes=3).to_dict()
    with pytest.raises(ValueError, match=re.escape(field)) as error:
        ViViTConfig.from_dict(good | changes)
    assert right in str(error.value)


@pytest.mark.parametrize(
    "name", ["b-16x2", "xl-16x2-model1", "b-16-model1", "b-16x2-model3-lt4", "ti-16x2-model4"]
)
def test_unknown_preset_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)model"):
        ViViTConfig.preset(name, classes=3)

"""A model file holds all that is needed, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.vivit import randomised
from tubelet.vivit import (
    PRESETS,
    ViViT,
    ViViTConfig,
    load_model,
    model_from_bytes,
    model_to_bytes,
    read_header,
    save_model,
)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny")])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    config = ViViTConfig.preset(name, heads_classes={"noun": 3, "verb": 2}, mean=(0.4, 0.5, 0.6))
    model = randomised(ViViT(config))
    save_model(tmp_path / "m.safetensors", model, {"labels": {"noun": ["ä", "b", "c"]}})
    again, metadata = load_model(tmp_path / "m.safetensors")
    assert metadata == {"labels": {"noun": ["ä", "b", "c"]}}
    assert again.config == config
    assert not again.training
    for (ours, value), (theirs, loaded) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert ours == theirs
        assert torch.equal(value, loaded)
        assert loaded.requires_grad
    assert read_header(tmp_path / "m.safetensors") == (config, metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    model = ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=2))
    save_model(tmp_path / "m.safetensors", model, {"step": 1})
    with pytest.raises(TypeError):
        save_model(tmp_path / "m.safetensors", model, {"step": object()})
    assert read_header(tmp_path / "m.safetensors")[1] == {"step": 1}


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model file"):
        load_model(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no safetensors file at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_model(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not one that tubelet wrote"):
        load_model(tmp_path / "other.safetensors")


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    model = ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=2))
    config = json.dumps(model.config.replace(classes=3).to_dict())
    head = {"format": "tubelet-vivit-1", "config": config, "metadata": "{}"}
    save_file(dict(model.state_dict()), tmp_path / "m.safetensors", metadata=head)
    with pytest.raises(ValueError, match="do not fit its config"):
        load_model(tmp_path / "m.safetensors")


def test_more_layers_than_tensors_are_refused_before_they_are_built(tmp_path: Path) -> None:
    model = ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=2))
    config = json.dumps(model.config.replace(layers=10**6).to_dict())
    head = {"format": "tubelet-vivit-1", "config": config, "metadata": "{}"}
    save_file(dict(model.state_dict()), tmp_path / "m.safetensors", metadata=head)
    with pytest.raises(ValueError, match=r"do not fit its config: \d+ tensors for 1000000 layers"):
        load_model(tmp_path / "m.safetensors")


def test_a_model_travels_as_bytes() -> None:
    model = ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=2))
    again = model_from_bytes(model_to_bytes(model))
    assert again.config == model.config
    assert not again.training
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_results_do_not_hang_on_where_the_file_has_its_weights(tmp_path: Path) -> None:
    """Matrix products give other last bits at other alignments, and the header decides these."""
    model = ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=2))
    loaded = [model_from_bytes(model_to_bytes(model))]
    for letters in range(0, 64, 8):
        save_model(tmp_path / f"{letters}.safetensors", model, {"note": "x" * letters})
        loaded.append(load_model(tmp_path / f"{letters}.safetensors")[0])
    assert {value.data_ptr() % 64 for one in loaded for value in one.state_dict().values()} == {0}

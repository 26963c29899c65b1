"""Ours to Hugging Face to ours, with `transformers` itself computing in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.vivit import OWN_GOLDEN, Golden, randomised
from tubelet.vivit import ViViT, ViViTConfig, load_huggingface, save_huggingface


@pytest.mark.parametrize(
    "changes", [{}, {"height": 24, "frames": 6, "activation": "gelu", "layer_norm_eps": 1e-5}]
)
def test_round_trip_through_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    from transformers import VivitForVideoClassification

    config = ViViTConfig.preset("tiny-8x2-model1", classes=3, mean=(0.4, 0.5, 0.6), **changes)
    ours = randomised(ViViT(config))
    save_huggingface(ours, tmp_path / "ours", labels=["run", "walk", "größer"])
    theirs = VivitForVideoClassification.from_pretrained(tmp_path / "ours").eval()
    assert theirs.config.id2label[2] == "größer"
    clip = torch.randn(2, config.frames, config.height, config.width, 3)
    with torch.no_grad():
        wanted = theirs(pixel_values=clip.permute(0, 1, 4, 2, 3)).logits
        torch.testing.assert_close(ours(clip), wanted, atol=5e-6, rtol=0)
    theirs.save_pretrained(tmp_path / "theirs")
    again, report = load_huggingface(tmp_path / "theirs", mean=(0.4, 0.5, 0.6))
    assert not report.left_over
    assert not report.initialised
    assert again.config == config
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    in_memory, _ = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    assert torch.equal(in_memory(clip), again(clip))


def test_our_folder_keeps_the_normalisation(tmp_path: Path) -> None:
    for mean, std in (((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        config = ViViTConfig.preset("tiny-8x2-model1", classes=3, mean=mean, std=std)
        save_huggingface(ViViT(config), tmp_path)
        again, _ = load_huggingface(tmp_path)
        assert again.config.mean == pytest.approx(mean)
        assert again.config.std == pytest.approx(std)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    x = 100.0
    theirs = (x * written["rescale_factor"] - 1 - written["image_mean"][1]) / written["image_std"][1]
    assert theirs == pytest.approx((x / 255 - 0.456) / 0.224)


def test_processor_of_the_class_default_reaches_from_minus_3_to_1(tmp_path: Path) -> None:
    """do_normalize=True normalises what the offset has already brought to [-1, 1]."""
    for file in (OWN_GOLDEN / "hf_vivit_tiny").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": True}))
    config = load_huggingface(tmp_path)[0].config
    ends = [(x / 255 - config.mean[0]) / config.std[0] for x in (0, 255)]
    assert ends == pytest.approx([-3, 1])


def test_pooler_is_left_over_and_missing_weights_are_refused(tmp_path: Path) -> None:
    for file in (OWN_GOLDEN / "hf_vivit_tiny").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    extra = state | {"vivit.pooler.dense.weight": torch.zeros(32, 32)}
    save_file(extra, tmp_path / "model.safetensors")
    _, report = load_huggingface(tmp_path)
    assert report.left_over == {"vivit.pooler.dense.weight": "the classifier does not use the pooler"}
    del state["vivit.encoder.layer.1.output.dense.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc2\.bias"):
        load_huggingface(tmp_path)


def test_backbone_alone_gets_a_new_head() -> None:
    case = Golden(OWN_GOLDEN / "hf_vivit_square.npz")
    state = case.group("state_dict")
    bare = {n.removeprefix("vivit."): v for n, v in state.items() if not n.startswith("classifier")}
    model, report = load_huggingface(bare, case.config["hf_config"])
    assert set(report.initialised) == {"head.weight", "head.bias"}
    clip = case["input"].movedim(2, -1)
    torch.testing.assert_close(model.encode(clip), case["last_hidden_state"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("variant", "changes", "field"),
    [
        ("model2", {}, "variant='model2'"),
        ("model1", {"classifier": "gap"}, "classifier='gap'"),
        ("model1", {"pre_logits": 8}, "pre_logits=8"),
        ("model1", {"classes": 0, "heads_classes": {"noun": 2, "verb": 1}}, "heads_classes="),
    ],
)
def test_what_hugging_face_cannot_express_is_refused(
    variant: str, changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    model = ViViT(ViViTConfig.preset(f"tiny-8x2-{variant}", **({"classes": 3} | changes)))
    with pytest.raises(ValueError, match=field):
        save_huggingface(model, tmp_path)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="model_type='swin'"):
        load_huggingface({}, {"model_type": "swin"})
    with pytest.raises(ValueError, match="use_gated_mlp=true"):
        load_huggingface({}, {"model_type": "dinov3_vit", "use_gated_mlp": True})
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        load_huggingface({}, {"model_type": "vivit", "hidden_act": "relu"})
    with pytest.raises(ValueError, match="needs its config"):
        load_huggingface({})

"""Filling a model from other weights: positions, embeddings, what is told and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.vivit import OWN_GOLDEN, Golden, image_config, randomised
from torch import Tensor
from tubelet.vivit import (
    InitOptions,
    LoadReport,
    ViViT,
    ViViTConfig,
    init_from,
    init_from_image,
    init_from_vivit,
    save_huggingface,
    save_model,
    to_scenic,
)
from tubelet.vivit.transfer import resize_grid, temporal_weights

VARIANTS = ("model1", "model2", "model3", "model4", "average")
IMAGE = OWN_GOLDEN / "scenic_vit_image_token.npz"
POSITION = "posembed_input/pos_embedding"


def build(variant: str, **changes: Any) -> ViViT:
    fields = {"classes": 5, "dim": 32, "mlp": 64} | changes
    return randomised(ViViT(ViViTConfig.preset(f"tiny-8x2-{variant}", **fields)), seed=1)


def image_arrays() -> dict[str, Tensor]:
    return Golden(IMAGE).group("params")


def told(report: LoadReport) -> set[str]:
    return set(report.loaded) | set(report.adapted) | set(report.initialised)


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_model_of_one_frame_is_what_the_video_model_starts_as(variant: str) -> None:
    """A still clip through a freshly filled model pools what the image model pools (models with its CLS)."""
    torch.manual_seed(0)
    model = build(variant)
    report = init_from_image(model, image_arrays(), spatial_cls=True)
    assert told(report) == {name for name, _ in model.named_parameters()}
    arrays = to_scenic(model)
    main = "SpatialTransformer" if model.config.factorised_encoder else "Transformer"
    source = image_arrays()
    mlp = "MlpBlock" if variant == "model3" else "MlpBlock_0"
    assert torch.equal(
        arrays[f"{main}/encoderblock_1/{mlp}/Dense_0/kernel"],
        source["Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel"],
    )
    assert torch.equal(arrays["embedding/kernel"][1], source["embedding/kernel"])
    assert not arrays["embedding/kernel"][0].any()
    rows = arrays[f"{main}/{POSITION}"][:, int(model.config.has_cls) :].unflatten(1, (-1, 16))
    assert torch.equal(rows, source[f"Transformer/{POSITION}"][:, None, 1:].expand_as(rows))


def test_average_model_of_a_still_clip_equals_the_image_model() -> None:
    """Without time to attend to, inflation and tiling must reproduce the image model exactly."""
    case = Golden(IMAGE)
    image = ViViT(image_config(case.config["model"], 32, 11))
    init_from_image(image, case.group("params"), head=True)
    for how in ("central", "average"):
        video = build("average", classes=11)
        init_from_image(video, case.group("params"), head=True, spatial_cls=True, embedding=how)
        still = case["input"][:, None].expand(-1, 8, -1, -1, -1)
        torch.testing.assert_close(video(still), image.eval()(case["input"][:, None]), atol=1e-5, rtol=0)


def test_model_3_from_an_image_starts_without_time_and_can_learn_it() -> None:
    default, original, copied = build("model3"), build("model3"), build("model3")
    init_from_image(default, image_arrays())
    init_from_image(original, image_arrays(), temporal_attention="zero")
    init_from_image(copied, image_arrays(), temporal_attention="copy")
    x = torch.randn(1, 64, 384)
    # The same function at the start: temporal attention adds nothing. The heads are the same random ones.
    torch.testing.assert_close(default(x), original(x), atol=1e-6, rtol=0)
    assert default.encoder.blocks[0].attention_time.qkv.weight.any()
    assert not default.encoder.blocks[0].attention_time.out.weight.any()
    assert not original.encoder.blocks[0].attention_time.qkv.weight.any()
    block = copied.encoder.blocks[0]
    assert torch.equal(block.attention_time.qkv.weight, block.attention_space.qkv.weight)
    assert not torch.allclose(copied(x), default(x), atol=1e-3)


def test_original_leaves_model_2s_cls_and_the_report_says_so() -> None:
    model = build("model2")
    before = model.encoder.cls.clone()
    report = init_from_image(model, image_arrays())
    assert torch.equal(model.encoder.cls, before)
    assert "spatial_cls=True" in report.left_over["cls"]
    assert "encoder.cls" in report.initialised
    report = init_from_image(model, image_arrays(), spatial_cls=True)
    assert torch.equal(model.encoder.cls, image_arrays()["cls"])
    assert "cls" not in report.left_over


def test_positions_between_grids() -> None:
    """Corner-aligned linear along every axis; one time index repeats; many to one is the mean."""
    rows = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 4, 1)
    wider = resize_grid(rows, (1, 2, 2), (1, 2, 3))[0, :, 0]
    assert wider.tolist() == pytest.approx([0, 0.5, 1, 2, 2.5, 3])
    assert resize_grid(rows, (1, 2, 2), (3, 2, 2))[0, :, 0].tolist() == [0, 1, 2, 3] * 3
    assert resize_grid(rows, (4, 1, 1), (7, 1, 1))[0, :, 0].tolist() == pytest.approx(
        [0, 0.5, 1, 1.5, 2, 2.5, 3]
    )
    assert resize_grid(rows, (2, 1, 2), (1, 1, 2))[0, :, 0].tolist() == [1, 2]


def test_tubelet_weights() -> None:
    assert temporal_weights(2, "central").tolist() == [0, 1]
    assert temporal_weights(4, "central").tolist() == [0, 0, 1, 0]
    assert temporal_weights(4, "average").tolist() == [0.25] * 4
    # 2(t - k + 1) - (t + 1)(H_t - H_(k-1)) by hand for t = 3, a third of each.
    h = [0, 1, 1.5, 1.5 + 1 / 3]
    wanted = [(2 * (3 - k + 1) - 4 * (h[3] - h[k - 1])) / 3 for k in (1, 2, 3)]
    assert temporal_weights(3, "average_arp").tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("source", VARIANTS)
def test_any_vivit_to_any_vivit_tells_everything(source: str, target: str, tmp_path: Path) -> None:
    """Through a file, to a longer and larger clip; every weight of both is accounted for."""
    giver, taker = build(source), build(target, frames=12, height=48, width=40)
    save_model(tmp_path / "model.safetensors", giver)
    before = to_scenic(build(target, frames=12, height=48, width=40))
    report = init_from(taker, tmp_path)
    assert told(report) == {name for name, _ in taker.named_parameters()}
    kept = {name for name, value in to_scenic(taker).items() if torch.equal(value, before[name])}
    assert {"output_projection/kernel", "output_projection/bias"} <= kept
    used = {part for name in report.loaded.values() for part in _parts(name)}
    given = {name for name in to_scenic(giver) if name not in report.left_over}
    adapted = {name for name in given if "pos_embedding" in name or name == "embedding/kernel"}
    assert given - used <= adapted
    if source == target:
        assert set(report.left_over) == {"output_projection/kernel", "output_projection/bias"}
    assert taker(torch.randn(1, taker.config.tokens, 384)).isfinite().all()


def _parts(name: str) -> list[str]:
    return [name.replace("{query,key,value}", part) for part in ("query", "key", "value")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_model_comes_back_whole(variant: str) -> None:
    giver, taker = build(variant), randomised(ViViT(build(variant).config), seed=9)
    report = init_from_vivit(taker, giver, head=True)
    assert not report.left_over
    assert not report.initialised
    for ours, theirs in zip(taker.parameters(), giver.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_interpolated_positions_of_a_video_keep_their_corners() -> None:
    giver, taker = build("model1"), build("model1", frames=14, height=48, width=48)
    report = init_from_vivit(taker, giver)
    assert "4x4 interpolated to 6x6" in report.adapted["encoder.position"]
    old = giver.encoder.position[0, 1:].view(4, 4, 4, -1)
    new = taker.encoder.position[0, 1:].view(7, 6, 6, -1)
    torch.testing.assert_close(
        new[[0, 0, -1], [0, -1, -1], [0, 0, -1]], old[[0, 0, -1], [0, -1, -1], [0, 0, -1]]
    )
    torch.testing.assert_close(new[2, 0, 0], old[1, 0, 0])  # 7 times over 4: every other is between two


def original_npz(path: Path, style: str) -> None:
    """The same image ViT as vision_transformer and as big_vision write it."""
    renamed = {}
    for name, value in image_arrays().items():
        new = name.replace("output_projection", "head")
        if style == "vision_transformer":
            new = new.replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
            new = new.replace("MlpBlock_0", "MlpBlock_3").replace("LayerNorm_1", "LayerNorm_2")
        else:
            new = "params/" + new.replace(f"Transformer/{POSITION}", "pos_embedding")
        renamed[new] = value.numpy()
    np.savez(path, **renamed)


@pytest.mark.parametrize("style", ["vision_transformer", "big_vision"])
def test_original_npz(style: str, tmp_path: Path) -> None:
    original_npz(tmp_path / "vit.npz", style)
    one, two = build("model1"), build("model1")
    report = init_from(one, tmp_path / "vit.npz")
    init_from(two, image_arrays())
    assert set(report.left_over) == {"output_projection/kernel", "output_projection/bias"}
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def timm_state() -> dict[str, Tensor]:
    return Golden(OWN_GOLDEN / "timm_vit_tiny.npz").group("state_dict")


def test_timm_file_and_layer_scale(tmp_path: Path) -> None:
    """Layer scale gamma is a factor of the branch, so twice the gamma of half the weights is the same
    model.
    """
    state = timm_state()
    scaled = dict(state)
    for name in ("blocks.0.attn.proj", "blocks.0.mlp.fc2"):
        gamma = "blocks.0.ls1.gamma" if "proj" in name else "blocks.0.ls2.gamma"
        scaled[gamma] = torch.full((48,), 2.0)
        scaled |= {f"{name}.{kind}": state[f"{name}.{kind}"] / 2 for kind in ("weight", "bias")}
    save_file(scaled, tmp_path / "vit.safetensors")
    torch.save(state, tmp_path / "vit.pth")
    models = [build("model1", dim=48, mlp=192) for _ in range(2)]
    reports = [init_from(models[0], tmp_path / "vit.safetensors"), init_from(models[1], tmp_path / "vit.pth")]
    assert all(set(report.left_over) == {"head.weight", "head.bias"} for report in reports)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_timm_models_with_other_blocks_are_refused() -> None:
    state = timm_state() | {"blocks.0.attn.q_norm.weight": torch.ones(12)}
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.q_norm\.weight"):
        init_from(build("model1", dim=48, mlp=192), state)


def test_report_is_a_table_for_people() -> None:
    model = build("model2")
    text = str(init_from(model, OWN_GOLDEN / "hf_vit_tiny"))
    assert "embedding.weight" in text
    assert "inflated over 2 frames (central)" in text
    assert "temporal_encoder.blocks.*.attention.qkv.weight" in text
    assert "trained with activation=gelu, the model has gelu_tanh" in text
    assert "classifier.weight" in text


@pytest.mark.parametrize(
    ("changes", "source", "options", "message"),
    [
        ({"dim": 64}, IMAGE, {}, "the source has dim=32, the model dim=64"),
        ({"mlp": 128}, IMAGE, {}, "choose the config"),
        ({"tubelet": (2, 4, 4)}, IMAGE, {}, 'embedding="keep"'),
        ({"height": 64, "width": 64}, IMAGE, {"position": "tile"}, '"resize_tile" or "auto"'),
        ({"height": 64, "width": 64}, IMAGE, {"position": "resize"}, "only for Model 2"),
        ({}, IMAGE, {"embedding": "median"}, "embedding='median'"),
        ({}, IMAGE, {"head": True}, "output_projection"),
        ({"heads": 2}, OWN_GOLDEN / "hf_vit_tiny", {}, "set heads=4"),
        ({}, OWN_GOLDEN / "scenic_lr_schedules.npz", {}, "not the weights of a ViT"),
        ({}, OWN_GOLDEN / "none.npz", {}, "no such file"),
        ({}, Path(__file__), {}, "must be .safetensors"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], source: Path, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if source == IMAGE:
        source = tmp_path / "vit.npz"
        np.savez(source, **{name: value.numpy() for name, value in image_arrays().items()})
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        init_from(build("model1", **changes), source, **options)
    assert message in str(error.value)


def test_video_model_is_no_image() -> None:
    with pytest.raises(ValueError, match="init_from_vivit"):
        init_from_image(build("model1"), build("model2"))


def test_hubs_without_package_or_network_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(RuntimeError, match=r"pip install 'tubelet\[pretrained\]'"):
        init_from(build("model1"), "timm:vit_base_patch16_224")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="hf:tubelet/no-such-model: cannot be fetched"):
        init_from(build("model1"), "hf:tubelet/no-such-model")


def test_our_own_huggingface_folder_is_a_source(tmp_path: Path) -> None:
    giver, taker = build("model1"), build("model3")
    save_huggingface(giver, tmp_path)
    report = init_from(taker, tmp_path)
    assert "vivit.embeddings.cls_token" in report.left_over
    assert torch.equal(taker.encoder.position, giver.encoder.position[:, 1:])


def test_options_are_checked_where_they_are_made() -> None:
    for name in ("position", "embedding", "temporal_attention"):
        with pytest.raises(ValueError, match=f"{name}='x'"):
            InitOptions(**{name: "x"})

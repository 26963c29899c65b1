"""Image and video models of other libraries: the same tokens and pooled output from the same weights.

The libraries themselves compute what ours is compared with, on small models with every weight drawn.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import SHARED
from support.timm import load_timm
from torch import Tensor, nn
from tubelet.vivit import (
    Preprocessing,
    ViViT,
    ViViTConfig,
    init_from,
    load_huggingface,
    load_model,
    of_huggingface,
    parameter_count,
    read_pretrained,
    save_model,
)
from tubelet.vivit.timm_models import timm_fields

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 7,
}
DINO = {name: value for name, value in SMALL.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTConfig", SMALL),
    "DeiT": ("DeiTConfig", SMALL),
    "ViTMAE": ("ViTMAEConfig", SMALL | {"mask_ratio": 0.0}),
    "Dinov2": ("Dinov2Config", DINO),
    "Dinov2WithRegisters": ("Dinov2WithRegistersConfig", DINO),
    "DINOv3ViT": ("DINOv3ViTConfig", SMALL | {"num_register_tokens": 4}),
    "CLIPVision": ("CLIPVisionConfig", SMALL),
    "SiglipVision": ("SiglipVisionConfig", SMALL),
}
TIMM_SMALL = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "augreg": ("vit_tiny_patch16_224", {}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {}),
    "mae": ("vit_base_patch16_224", {"qkv_bias": True}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3_token": ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    "clip": ("vit_base_patch32_clip_quickgelu_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "no_class_token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
}


@torch.no_grad()
def drawn(module: nn.Module) -> Any:
    """Every weight drawn, also those that start at 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + offset)
    return module.eval()


def filled(source: Any, side: int, variant: str = "average", **changes: Any) -> ViViT:
    """A model of one frame that follows its source, through a file and back."""
    found = read_pretrained(source)
    fields = found.size() | found.settings(variant) | changes
    config = ViViTConfig(variant=variant, frames=1, height=side, width=side, classes=3, **fields)
    assert ViViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = drawn(ViViT(config))
    report = init_from(model, source, spatial_cls=True)
    told = set(report.loaded) | set(report.adapted) | set(report.initialised)
    assert told == {name for name, _ in model.named_parameters()}
    assert {name for name in report.initialised if name.startswith("encoder.")} == set()
    assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())
    return model.eval()


@torch.no_grad()
def outputs(model: ViViT, image: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of the spatial encoder and its pooled output for images `(B, 3, H, W)`."""
    clip = image.permute(0, 2, 3, 1)[:, None]
    tokens = model.encoder(model.embed(clip)[:, None])
    return tokens[:, 0], model.encoder.pool(tokens)[:, 0]


@pytest.mark.parametrize("side", [28, 42])
@pytest.mark.parametrize("family", HUGGING_FACE)
def test_hugging_face_families_are_computed_alike(family: str, side: int, tmp_path: Path) -> None:
    import transformers

    kind, arguments = HUGGING_FACE[family]
    theirs = drawn(getattr(transformers, f"{family}Model")(getattr(transformers, kind)(**arguments)))
    theirs.save_pretrained(tmp_path)
    image = torch.randn(2, 3, side, side)
    tokens, pooled = outputs(filled(tmp_path, side), image)
    asked: dict[str, Any] = {"interpolate_pos_encoding": True} if "ino" not in family and side != 28 else {}
    if family == "ViTMAE":
        asked["noise"] = torch.arange((side // 7) ** 2).float().expand(2, -1)
    with torch.no_grad():
        found = theirs(pixel_values=image, **asked)
        wanted = found.last_hidden_state
        if family == "CLIPVision":
            norm = getattr(theirs, "vision_model", theirs).post_layernorm
            wanted, pool = norm(wanted), found.pooler_output
        else:
            pool = found.pooler_output if family == "SiglipVision" else wanted[:, 0]
    torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, pool, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [28, 42])
@pytest.mark.parametrize("family", TIMM)
def test_timm_families_are_computed_alike(family: str, side: int, tmp_path: Path) -> None:
    """Through a folder in timm's own format; another size as timm itself loads it there."""
    timm = load_timm()
    name, changes = TIMM[family]
    arguments = TIMM_SMALL | changes
    theirs = drawn(timm.create_model(name, pretrained=False, **arguments))
    save_timm(tmp_path, theirs, name, arguments)
    image = torch.randn(2, 3, side, side)
    tokens, pooled = outputs(filled(tmp_path, side), image)
    if side != 28:
        theirs.set_input_size(img_size=(side, side))
    with torch.no_grad():
        wanted = theirs.forward_features(image)
        # timm pools a distilled model by the mean of both tokens, which are its two classifiers'.
        distilled = family == "deit_distilled"
        pool = wanted[:, 0] if distilled else theirs.forward_head(wanted, pre_logits=True)
    torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, pool, atol=1e-5, rtol=1e-5)


def save_timm(folder: Path, model: Any, name: str, arguments: dict[str, Any], **said: Any) -> None:
    """A folder as timm pushes it to a hub."""
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors"
    )
    pretrained = {key: model.pretrained_cfg[key] for key in ("mean", "std", "input_size")} | said
    config = {"architecture": name, "model_args": arguments, "num_classes": 0, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_videomae_gives_its_own_logits(mean_pooling: bool, tmp_path: Path) -> None:
    import transformers

    config = transformers.VideoMAEConfig(**SMALL, num_frames=4, use_mean_pooling=mean_pooling, num_labels=3)
    theirs = drawn(transformers.VideoMAEForVideoClassification(config))
    theirs.save_pretrained(tmp_path)
    clip = torch.randn(2, 4, 28, 28, 3)
    with torch.no_grad():
        wanted = theirs(pixel_values=clip.permute(0, 1, 4, 2, 3)).logits
    ours, report = load_huggingface(tmp_path)
    assert not report.left_over
    torch.testing.assert_close(ours(clip), wanted, atol=1e-5, rtol=1e-5)
    started = ViViT(ours.config)
    assert not init_from(started, tmp_path, head=True).initialised
    torch.testing.assert_close(started.eval()(clip), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="choose model1, not model2"):
        init_from(ViViT(ours.config.replace(variant="model2", classifier="gap")), tmp_path)


def test_original_videomae_names(tmp_path: Path) -> None:
    """The authors' file: fused qkv without bias, q_bias and v_bias beside it."""
    import transformers

    config = transformers.VideoMAEConfig(**SMALL, num_frames=4, num_labels=3)
    theirs = drawn(transformers.VideoMAEForVideoClassification(config))
    theirs.save_pretrained(tmp_path)
    ours, _ = load_huggingface(tmp_path)
    state, d = ours.state_dict(), 32
    renamed = {
        "patch_embed.proj.weight": state["embedding.weight"].view(d, 2, 7, 7, 3).permute(0, 4, 1, 2, 3),
        "patch_embed.proj.bias": state["embedding.bias"],
    }
    for name, value in state.items():
        new = (
            name.removeprefix("encoder.").replace("attention.out", "attn.proj").replace("attention.", "attn.")
        )
        new = {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}.get(new, new)
        if new.endswith("qkv.bias"):
            stem = new.removesuffix("qkv.bias")
            renamed |= {f"{stem}q_bias": value[:d], f"{stem}v_bias": value[2 * d :]}
        elif new.startswith(("blocks.", "fc_norm.", "head.")):
            renamed[new] = value
    model = ViViT(ours.config)
    init_from(model, {name: value.contiguous() for name, value in renamed.items()}, head=True)
    for name, value in state.items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_what_a_model_lacks_is_named(tmp_path: Path) -> None:
    import transformers

    theirs = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=4))
    theirs.save_pretrained(tmp_path)
    fields = read_pretrained(tmp_path).size()
    plain = ViViT(ViViTConfig(variant="average", frames=1, height=28, width=28, classes=2, **fields))
    with pytest.raises(ValueError, match="set registers=4"):
        init_from(plain, tmp_path)
    with pytest.raises(ValueError, match="choose model2 or average, not model1"):
        init_from(ViViT(plain.config.replace(variant="model1", registers=4)), tmp_path)
    with pytest.raises(ValueError, match="no learned positions to resize"):
        init_from(ViViT(plain.config.replace(registers=4, rope=100.0)), tmp_path, resize="bicubic")
    with pytest.raises(ValueError, match=r"rope=100\.0: rotary"):
        plain.config.replace(variant="model1", rope=100.0)


def test_settings_without_effect_are_left_out_of_files(tmp_path: Path) -> None:
    """Old files, names and hashes stay as they are."""
    config = ViViTConfig.preset("tiny-8x2-model2", classes=2)
    assert not {"registers", "embed_norm", "fc_norm", "rope", "class_token"} & set(config.to_dict())
    changed = config.replace(
        registers=2, embed_norm=True, classifier="map", activation="quick_gelu", rope=50.0
    )
    save_model(tmp_path / "model.safetensors", ViViT(changed))
    again, _ = load_model(tmp_path / "model.safetensors")
    assert again.config == changed


def test_bare_file_tells_what_it_assumes(tmp_path: Path) -> None:
    timm = load_timm()
    theirs = drawn(timm.create_model("vit_small_patch14_dinov2", pretrained=False, **TIMM_SMALL))
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "image.safetensors")
    found = read_pretrained(tmp_path / "image.safetensors")
    assert found.fields["heads"] == 1
    assert found.resize == "bicubic"
    assert found.preprocessing == Preprocessing(224, 224, "bicubic")
    assert found.settings("model2")["mean"] == (0.485, 0.456, 0.406)
    model = ViViT(ViViTConfig(variant="model2", frames=1, height=28, width=28, classes=2, **found.size()))
    text = str(init_from(model, tmp_path / "image.safetensors"))
    assert "heads=dim / 64 = 1" in text
    assert "ImageNet" in text


def test_preprocessing_follows_the_source(tmp_path: Path) -> None:
    """As timm's own transform and the processors of transformers make an image their input."""
    timm = load_timm()
    theirs = timm.create_model("vit_small_patch14_dinov2", pretrained=False, **TIMM_SMALL)
    save_timm(tmp_path, theirs, "vit_small_patch14_dinov2", TIMM_SMALL, crop_pct=0.9, interpolation="bicubic")
    assert read_pretrained(tmp_path).preprocessing == Preprocessing(28, 31, "bicubic")
    side = {"height": 32, "width": 32}
    for processor, wanted in (
        ({"size": {"shortest_edge": 36}, "crop_size": side, "resample": 3}, Preprocessing(32, 36, "bicubic")),
        ({"size": {"shortest_edge": 36}, "resample": 2}, Preprocessing(28, 36, "bilinear")),
        ({"size": side, "resample": 2}, Preprocessing(32, 32, "bilinear")),
        ({"size": 30, "crop_size": 28, "resample": 1}, Preprocessing(28, 30, "bicubic")),
        ({"do_resize": False, "crop_size": 28}, Preprocessing(28, 28, "bilinear")),
    ):
        assert dataclasses.replace(of_huggingface(processor, 28), notes=()) == wanted
    assert "squeezes" in of_huggingface({"size": side}, 28).notes[0]
    assert "lanczos: bicubic instead" in of_huggingface({"resample": 1}, 28).notes[-1]


def test_timm_models_that_are_no_plain_vit_are_refused_by_name() -> None:
    timm = load_timm()
    with torch.device("meta"):
        other = timm.create_model("vit_relpos_small_patch16_224", pretrained=False)
        eva = timm.create_model("eva02_tiny_patch14_224", pretrained=False)
    with pytest.raises(ValueError, match="VisionTransformerRelPos: no plain ViT"):
        timm_fields(other, {})
    with pytest.raises(ValueError, match="only as DINOv3"):
        timm_fields(eva, {})


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "hf-hub:someone/model"},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "evil.pt"}},
        {"architecture": "no_such_model"},
    ],
)
def test_timm_folder_makes_nothing_else_be_read(config: dict[str, Any], tmp_path: Path) -> None:
    load_timm()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"architecture=|cannot make its no_such_model"):
        read_pretrained(tmp_path)


def test_files_of_strangers_run_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"model": Hostile()}))
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "noise.bin").write_bytes(b"\x80\x04" + bytes(range(256)))
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)))
    for name in ("pickle.pt", "list.pt", "noise.bin", "noise.safetensors"):
        with pytest.raises(ValueError, match=r"convert it to \.safetensors|not a safetensors file") as error:
            read_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


WEIGHTS = SHARED / "weights" / "vit_s14_image.safetensors"


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no real weights beside the checkout")
def test_real_image_weights_load_as_their_page_says() -> None:
    """148 loaded, 2 adapted, 54 initialised, none left over; positions bicubic without antialiasing."""
    found = read_pretrained(WEIGHTS)
    changes: dict[str, Any] = {"frames": 2, "classes": 2, "height": 224, "width": 224}
    config = ViViTConfig.preset("s-14x1-model2", **changes, **found.settings("model2"))
    assert (config.mean, config.activation, config.heads) == (
        (0.485, 0.456, 0.406),
        "gelu",
        found.fields["heads"],
    )
    model = ViViT(config)
    report = init_from(model, WEIGHTS, spatial_cls=True)
    counts = len(report.loaded), len(report.adapted), len(report.initialised), len(report.left_over)
    assert counts == (148, 2, 54, 0)
    assert found.weights is not None
    rows = found.weights.arrays["pos_embed"][:, 1:].view(1, 37, 37, 384).permute(0, 3, 1, 2)
    wanted = nn.functional.interpolate(rows, size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.encoder.position[0, 1:], wanted.flatten(2)[0].T, atol=1e-6, rtol=0)

"""Equal to the authors' JAX code, to Hugging Face and to timm, case by case.

Every `.npz` of the golden folders whose kind belongs to the model is one test case, named by its file. The
tolerances are those that float32 reaches on these cases; a wrong GELU, epsilon, head order or axis order is
beyond them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.vivit import Golden, config_of, golden_config, golden_files, image_config, randomised
from torch import Tensor
from tubelet.vivit import (
    ViViT,
    ViViTConfig,
    init_from_image,
    init_from_vivit,
    load_huggingface,
    load_scenic,
    to_scenic,
)
from tubelet.vivit.scenic import assign

LOGITS, SUMMED_LOGITS, GRADIENTS, INIT, LOSS = 5e-6, 1e-5, 3e-5, 5e-6, 1e-5
TOKENS = 2e-5  # final tokens reach values of 4 and more, logits stay below 1
ELSEWHERE = (
    *("scenic_train", "scenic_lr", "scenic_losses"),  # tests of training
    *("dmvr_preprocess", "hf_preprocess"),  # tests of the decoder
)


def _forward(case: Golden) -> None:
    """Logits, what is pooled, the encoder's output, the loss and every gradient."""
    config = _video_config(case, case.config["model"], case.config["input_shape"])
    model, report = load_scenic(case.group("params"), config)
    assert not report.left_over
    assert not report.initialised
    logits, pooled = model(case["input"], features=True)
    _close(logits, case["logits"], SUMMED_LOGITS if config.classifier == "gsp" else LOGITS)
    if "prelogits" in case:
        hidden = pooled if model.pre_logits is None else torch.tanh(model.pre_logits(pooled))
        _close(hidden, case["prelogits"], 64 * TOKENS if config.classifier == "gsp" else TOKENS)
    if "encoded" in case:
        _close(model.encode(case["input"]), case["encoded"], TOKENS)
    if "loss" in case:
        _check_gradients(model, logits, case)


def _check_gradients(model: ViViT, logits: Tensor, case: Golden) -> None:
    loss = F.cross_entropy(logits, case["labels"])
    _close(loss, case["loss"], LOSS)
    loss.backward()
    gradients = ViViT(model.config)
    for ours, parameter in zip(gradients.parameters(), model.parameters(), strict=True):
        assert parameter.grad is not None
        ours.data.copy_(parameter.grad)
    _all_close(to_scenic(gradients), case.group("grads"), GRADIENTS)


def _image_forward(case: Golden) -> None:
    """The original's image ViT is Model 1 on one frame."""
    config = image_config(case.config["model"], case.config["image_size"], case.config["num_classes"])
    arrays = case.group("params")
    arrays["embedding/kernel"] = arrays["embedding/kernel"][None]
    model, report = load_scenic(arrays, config)
    assert not report.left_over
    _close(model(case["input"][:, None]), case["logits"], LOGITS)


def _init(case: Golden) -> None:
    """From an image ViT of the original."""
    _check_init(case, case.group("vit"))


def _init_external(case: Golden) -> None:
    """From a Hugging Face folder or a timm state dict beside the case."""
    name = case.config["source"]
    if "timm" in name:
        _check_init(case, Golden(case.beside(f"{name}.npz")).group("state_dict"))
    else:
        _check_init(case, case.beside(name))


def _check_init(case: Golden, source: dict[str, Tensor] | Path) -> None:
    config = _video_config(case, case.config["model"], case.config["input_shape"])
    model = randomised(ViViT(config))
    assign(model, case.group("before"))
    report = init_from_image(model, source, **_options(case.config))
    names = {name for name, _ in model.named_parameters()}
    assert set(report.loaded) | set(report.adapted) | set(report.initialised) == names
    _all_close(to_scenic(model), case.group("after"), INIT)
    _close(model(case["input"]), case["logits"], LOGITS)


def _init_video(case: Golden) -> None:
    """From another video model of the original."""
    config = _video_config(case, case.config["model"], case.config["input_shape"])
    source_model = case.config.get("source_model", case.config["model"])
    source = _video_config(case, source_model, case.config["source_shape"])
    n_t, n_h, n_w = source.grid
    model = randomised(ViViT(config))
    assign(model, case.group("before"))
    grid = (1 if source.factorised_encoder else n_t, n_h, n_w)
    init_from_vivit(model, case.group("source"), grid=grid, **_options(case.config))
    _all_close(to_scenic(model), case.group("after"), INIT)
    _close(model(case["input"]), case["logits"], LOGITS)


def _huggingface(case: Golden) -> None:
    """A Hugging Face state dict with its config."""
    model, report = load_huggingface(case.group("state_dict"), case.config["hf_config"])
    assert not report.left_over
    assert not report.initialised
    clip = _channels_last(case["input"])
    _close(model(clip), case["logits"], LOGITS)
    if "last_hidden_state" in case:
        _close(model.encode(clip), case["last_hidden_state"], TOKENS)


def _huggingface_folder(case: Golden) -> None:
    """A folder as `save_pretrained` writes it."""
    model, report = load_huggingface(case.beside(case.config["folder"]))
    assert not report.initialised
    _close(model(_channels_last(case["input"])), case["logits"], LOGITS)


def _huggingface_from_scenic(case: Golden) -> None:
    """The original's weights under Hugging Face's names are the original's weights."""
    scenic = Golden(case.beside(case.config["source"]))
    config = _video_config(scenic, scenic.config["model"], scenic.config["input_shape"])
    model = randomised(ViViT(config))
    report = init_from_vivit(model, case.group("state_dict"), head=True)
    assert not report.left_over
    assert not report.initialised
    assert not report.adapted
    _all_close(to_scenic(model), scenic.group("params"), 0)
    _close(model(_channels_last(case["input"])), case["logits"], LOGITS)


def _timm(case: Golden) -> None:
    """timm's image ViT is Model 1 on one frame, with the exact GELU; with or without a class token."""
    args, state = case.config["args"], case.group("state_dict")
    has_cls = args.get("class_token", True)
    pool = args.get("global_pool", "token" if has_cls else "avg") or ("token" if has_cls else "avg")
    config = ViViTConfig(
        frames=1,
        height=args["img_size"],
        width=args["img_size"],
        tubelet=(1, args["patch_size"], args["patch_size"]),
        dim=args["embed_dim"],
        layers=args["depth"],
        heads=args["num_heads"],
        mlp=state["blocks.0.mlp.fc1.weight"].shape[0],
        classes=args["num_classes"],
        activation="gelu",
        layer_norm_eps=case.config["layernorm_eps"],
        classifier={"token": "token", "avg": "gap", "map": "map"}[pool],
        class_token=(has_cls and pool != "token") or None,
        registers=args.get("reg_tokens", 0),
        embed_norm=args.get("pre_norm", False),
        fc_norm="fc_norm.weight" in state,
    )
    model = ViViT(config).eval()
    report = init_from_image(model, state, head=True)
    assert not report.left_over
    assert not report.initialised
    clip = _channels_last(case["input"])
    _close(model(clip), case["logits"], LOGITS)
    if "features" in case:
        _close(model.encode(clip), case["features"], TOKENS)


CHECKS = {
    "scenic_forward": _forward,
    "scenic_vit_image": _image_forward,
    "scenic_init": _init,
    "scenic_init_external": _init_external,
    "scenic_init_video": _init_video,
    "hf_vivit": _huggingface,
    "hf_vivit_folder": _huggingface_folder,
    "hf_vit_folder": _huggingface_folder,
    "hf_from_scenic": _huggingface_from_scenic,
    "timm_vit": _timm,
}


@pytest.mark.parametrize("path", golden_files(but=ELSEWHERE), ids=lambda path: path.name)
def test_golden(path: Path) -> None:
    kind = golden_config(path)["kind"]
    assert kind in CHECKS, f"no check for cases of kind {kind!r}"
    CHECKS[kind](Golden(path))


def _video_config(case: Golden, model: dict[str, Any], shape: list[int]) -> ViViTConfig:
    return config_of(model, shape, case.config["num_classes"], case.config.get("attention_type"))


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Our options of the original's settings."""
    asked = config["init_from"]
    method = (
        config["model"]
        .get("temporal_encoding_config", {})
        .get("kernel_init_method", "central_frame_initializer")
    )
    change = asked.get("positional_embed_size_change") or "auto"
    return {
        "position": change if asked.get("restore_positional_embedding", True) else "keep",
        "embedding": method.removesuffix("_frame_initializer")
        if asked.get("restore_input_embedding", True)
        else "keep",
        "head": config.get("restore_output_proj", False),
        "spatial_attention": asked.get("init_spatial_transformer", True),
        "temporal_attention": "copy" if asked.get("init_temporal_transformer", True) else "keep",
    }


def _channels_last(x: Tensor) -> Tensor:
    """`(N, T, C, H, W)`, or images `(N, C, H, W)`, to clips `(N, T, H, W, C)`."""
    return (x if x.dim() == 5 else x[:, None]).movedim(2, -1)


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), theirs, atol=tolerance, rtol=0)


def _all_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )

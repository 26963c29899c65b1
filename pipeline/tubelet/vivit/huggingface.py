"""Hugging Face's ViViT, VideoMAE and image models: load them, and save what `transformers` loads.

`transformers` itself is not needed. Sources: `VivitConfig`, `ViTConfig` and the processors' JSON files as
`save_pretrained` writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.families import is_known, read
from tubelet.vivit.foreign import POSITION, from_weights, hf_name, to_torch_layout
from tubelet.vivit.model import ViViT
from tubelet.vivit.report import LoadReport
from tubelet.vivit.scenic import load_scenic, to_scenic
from tubelet.vivit.transfer import sine_positions

_TANH_GELU = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")
VIDEO_KINDS = ("vivit", "videomae")
_BASE = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
}
_BERT = _BASE | {"intermediate_size": 3072, "layer_norm_eps": 1e-12}
# What a config.json means that leaves a setting out: the defaults of transformers' classes.
_FAMILIES: dict[str, dict[str, Any]] = {
    "vivit": _BERT
    | {"num_frames": 32, "tubelet_size": (2, 16, 16), "layer_norm_eps": 1e-6, "hidden_act": "gelu_fast"},
    "videomae": _BERT | {"num_frames": 16, "tubelet_size": 2, "use_mean_pooling": True},
    "vit": _BERT,
    "deit": _BERT,
    "vit_mae": _BERT,
    "dinov2": _BASE | {"patch_size": 14, "mlp_ratio": 4, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": _BASE
    | {"patch_size": 14, "mlp_ratio": 4, "layer_norm_eps": 1e-6, "num_register_tokens": 4},
    "dinov3_vit": _BASE
    | {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "num_register_tokens": 0,
    },
    "clip_vision_model": _BASE
    | {"patch_size": 32, "intermediate_size": 3072, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    "siglip_vision_model": _BASE
    | {
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": True,
    },
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Mean and std of families whose folder has no preprocessor_config.json; the others': ImageNet's.
USUAL_NORMALISATION = {
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip_vision_model": ((0.5,) * 3, (0.5,) * 3),
}


def load_huggingface(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[ViViT, LoadReport]:
    """A model equal to Hugging Face's, in evaluation mode, and a report of what was loaded.

    `source`: a folder as `save_pretrained` writes it, or a state dict (names as on disk or as in memory)
    together with its `config` (the dict of config.json). `changes` are fields of `ViViTConfig`. The
    normalisation comes from preprocessor_config.json; without one it is [-1, 1], which is what the authors
    feed. An image ViT becomes Model 1 on clips of one frame.

    Raises:
        FileNotFoundError: The folder lacks a file that it needs.
        ValueError: Another architecture, or weights that the config asks for are missing.
    """
    preprocessor = None
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        config = config or read_json(folder / "config.json")
        preprocessor = read_json(folder / "preprocessor_config.json", missing_ok=True)
        source = read_weights(folder)
    if not config:
        raise ValueError("a Hugging Face state dict needs its config: load_huggingface(state, config={...})")
    ours = config_from_huggingface(config, preprocessor).replace(**changes)
    if not is_known(source):
        raise ValueError("not the weights of a ViT or ViViT in Hugging Face's names")
    weights = read(source)
    arrays, names = from_weights(weights, ours.heads)
    if arrays["embedding/kernel"].dim() == 4:
        arrays["embedding/kernel"] = arrays["embedding/kernel"][None]
    if weights.has_sine_positions:
        arrays[POSITION] = sine_positions(ours.tokens, ours.dim)
        names[POSITION] = "the fixed sine positions"
    if ours.variant == "average":
        arrays = {_spatial(name): value for name, value in arrays.items()}
        names = {_spatial(name): value for name, value in names.items()}
    model, report = load_scenic(arrays, ours, strict=False)
    not_loaded = sorted(name for name in report.initialised if not name.startswith("head."))
    if not_loaded:
        raise ValueError(f"{len(not_loaded)} weights are missing for this config, the first: {not_loaded[0]}")
    report.source = f"Hugging Face {config['model_type']}"
    report.loaded = {name: names[array] for name, array in report.loaded.items()}
    report.left_over = {names[name]: reason for name, reason in report.left_over.items()}
    report.left_over |= weights.left_over
    report.notes += weights.notes
    if not preprocessor:
        report.notes.append(
            "no preprocessor_config.json: uint8 input is normalised to [-1, 1]"
            if config["model_type"] in ("vivit", "vit")
            else f"no preprocessor_config.json: mean={ours.mean}, std={ours.std}"
        )
    return model, report


def save_huggingface(
    model: ViViT, folder: str | os.PathLike[str], labels: Sequence[str] | None = None
) -> None:
    """Write a folder for `VivitForVideoClassification.from_pretrained`: weights, config, preprocessor.

    Only Model 1 with tubelets, a CLS token and a single label set exists there; anything else raises
    `ValueError` naming the field.
    """
    _check_expressible(model.config)
    if labels is not None and len(labels) != model.config.classes:
        raise ValueError(
            f"{len(labels)} labels for {model.config.classes} classes; give one a class, in order"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = to_scenic(model)
    tensors = {hf_name(name): to_torch_layout(name, value.cpu()) for name, value in arrays.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    names = labels or [f"LABEL_{index}" for index in range(model.config.classes)]
    _write_json(folder / "config.json", _huggingface_config(model.config, names))
    _write_json(folder / "preprocessor_config.json", _preprocessor(model.config))


def config_from_huggingface(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
) -> ViViTConfig:
    """Our config of Hugging Face's config.json (and preprocessor_config.json).

    ViViT and VideoMAE are Model 1. An image model is Model 1 on clips of one frame, or the average-pool
    baseline where its positions are rotary.

    Raises:
        ValueError: Another architecture, or a setting that ViViT lacks.
    """
    kind = config.get("model_type")
    if kind in ("clip", "siglip"):
        return config_from_huggingface(
            {"model_type": f"{kind}_vision_model", **config["vision_config"]}, preprocessor
        )
    if kind not in _FAMILIES:
        raise ValueError(f"model_type={kind!r}: none of those that can be loaded ({', '.join(_FAMILIES)})")
    values = _FAMILIES[kind] | {name: value for name, value in config.items() if value is not None}
    _refuse(values)
    size, patch, video = values["image_size"], values["patch_size"], kind in VIDEO_KINDS
    height, width = (size, size) if isinstance(size, int) else size
    tubelet = values["tubelet_size"] if video else (1, patch, patch)
    mean, std = _normalisation(preprocessor, kind)
    dim = values["hidden_size"]
    return ViViTConfig.from_dict(
        {
            "variant": "average" if kind == "dinov3_vit" else "model1",
            "frames": values["num_frames"] if video else 1,
            "height": height,
            "width": width,
            "tubelet": (tubelet, patch, patch) if isinstance(tubelet, int) else tubelet,
            "dim": dim,
            "layers": values["num_hidden_layers"],
            "heads": values["num_attention_heads"],
            "mlp": int(values.get("intermediate_size") or dim * values["mlp_ratio"]),
            "classes": len(config.get("id2label") or {0: "", 1: ""}),
            "dropout": values.get("hidden_dropout_prob", 0.0),
            "attention_dropout": values.get("attention_probs_dropout_prob", 0.0),
            "layer_norm_eps": values["layer_norm_eps"],
            "activation": _activation(values["hidden_act"]),
            "mean": mean,
            "std": std,
            **_parts(kind, values),
        }
    )


def _parts(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a family has beside the parts of a plain ViT."""
    if kind == "videomae":
        mean_pooling = values["use_mean_pooling"]
        return {"classifier": "gap" if mean_pooling else "0", "fc_norm": mean_pooling}
    found: dict[str, Any] = {"registers": values.get("num_register_tokens", 0)}
    if kind == "deit":
        found["registers"] = 1  # the distillation token
    if kind == "dinov3_vit":
        found["rope"] = values["rope_theta"]
    if kind == "clip_vision_model":
        found["embed_norm"] = True
    if kind == "siglip_vision_model":
        found["classifier"] = "map" if values["vision_use_head"] else "gap"
    return found


def _refuse(values: Mapping[str, Any]) -> None:
    if values.get("num_channels", 3) != 3:
        raise ValueError(f"num_channels={values['num_channels']}: only 3 channels")
    for name in ("use_swiglu_ffn", "use_gated_mlp"):
        if values.get(name):
            raise ValueError(f"{name}=true: a gated MLP, which ViViT does not have; choose a plain ViT")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files (one, or shards)."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder}: no .safetensors file in it (save the model with safe_serialization)"
        )
    state: dict[str, Tensor] = {}
    for file in files:
        state |= load_file(file)
    return state


def read_json(path: Path, missing_ok: bool = False) -> dict[str, Any]:
    """The object in a JSON file, empty where it is missing and may be."""
    if not path.is_file():
        if missing_ok:
            return {}
        raise FileNotFoundError(f"{path.parent}: no {path.name} in it")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _activation(name: str) -> str:
    if name in _TANH_GELU:
        return "gelu_tanh"
    if name not in ("gelu", "quick_gelu"):
        raise ValueError(f"hidden_act={name!r}: must be gelu, quick_gelu or one of {', '.join(_TANH_GELU)}")
    return name


def _normalisation(
    preprocessor: Mapping[str, Any] | None, kind: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of x / 255 that do what the processor does: rescale, offset, normalise."""
    found: Mapping[str, Any] = preprocessor or {}
    if not preprocessor:
        mean_std = USUAL_NORMALISATION.get(kind, IMAGENET)
        found = dict(zip(("image_mean", "image_std"), mean_std, strict=True))
        if kind in ("vivit", "vit"):
            found = {"do_normalize": False, "offset": True, "rescale_factor": 1 / 127.5}
    # The processors' own defaults for keys that are not there.
    scale = found.get("rescale_factor", 1 / 255) * 255 if found.get("do_rescale", True) else 255
    shift = 1.0 if found.get("offset", False) else 0.0
    normalise = found.get("do_normalize", True)
    mean = found.get("image_mean", (0.5,) * 3) if normalise else (0.0,) * 3
    std = found.get("image_std", (0.5,) * 3) if normalise else (1.0,) * 3
    return tuple((shift + one) / scale for one in mean), tuple(one / scale for one in std)


def _preprocessor(config: ViViTConfig) -> dict[str, Any]:
    """The processor that normalises as the config says: x / 127.5 - 1, then by mean and std if need be."""
    mean = [2 * one - 1 for one in config.mean]
    std = [2 * one for one in config.std]
    plain = max(map(abs, mean)) < 1e-7 and max(abs(one - 1) for one in std) < 1e-7
    return {
        "image_processor_type": "VivitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(min(config.height, config.width) * 256 / 224)},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": config.height, "width": config.width},
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "offset": True,
        "do_normalize": not plain,
        "image_mean": [0.0] * 3 if plain else mean,
        "image_std": [1.0] * 3 if plain else std,
    }


def _huggingface_config(config: ViViTConfig, labels: Sequence[str]) -> dict[str, Any]:
    square = config.height == config.width
    return {
        "architectures": ["VivitForVideoClassification"],
        "model_type": "vivit",
        "image_size": config.height if square else [config.height, config.width],
        "num_frames": config.frames,
        "tubelet_size": list(config.tubelet),
        "num_channels": 3,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "hidden_act": "gelu_fast" if config.activation == "gelu_tanh" else "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.layer_norm_eps,
        "qkv_bias": True,
        "dtype": "float32",
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _check_expressible(config: ViViTConfig) -> None:
    wanted = {
        "variant": "model1",
        "classifier": "token",
        "tokeniser": "tubelet",
        "pre_logits": None,
        "heads_classes": None,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}={getattr(config, name)!r}: Hugging Face's ViViT has only {name}={value!r}"
            )


def _spatial(name: str) -> str:
    """The name of an array in the spatial encoder of a factorised model."""
    return (
        "cls_SpatialTransformer" if name == "cls" else name.replace("Transformer/", "SpatialTransformer/", 1)
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

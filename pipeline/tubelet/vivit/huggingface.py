"""Hugging Face's ViViT (Model 1) and image ViT: load a folder or state dict, and save what `transformers`
loads.

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
from tubelet.vivit.foreign import from_huggingface, hf_name, to_torch_layout
from tubelet.vivit.model import ViViT
from tubelet.vivit.report import LoadReport
from tubelet.vivit.scenic import load_scenic, to_scenic

_TANH_GELU = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")


def load_huggingface(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[ViViT, LoadReport]:
    """A model equal to Hugging Face's, in evaluation mode, and a report of what was loaded.

    `source`: a folder as `save_pretrained` writes it, or a state dict (names as on disk or as in memory)
    together with its `config` (the dict of config.json). `changes` are fields of `ViViTConfig`. The
    normalisation comes from preprocessor_config.json; without one it is [-1, 1], which is what the authors
    feed. An image ViT becomes Model 1 on clips of one frame. Raises `FileNotFoundError`, or `ValueError`
    for another architecture.
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
    arrays, left_over = from_huggingface(source, ours.heads)
    if config["model_type"] == "vit":
        arrays["embedding/kernel"] = arrays["embedding/kernel"][None]
    model, report = load_scenic(arrays, ours, strict=False)
    not_loaded = sorted(name for name in report.initialised if not name.startswith("head."))
    if not_loaded:
        raise ValueError(f"{len(not_loaded)} weights are missing for this config, the first: {not_loaded[0]}")
    report.source = f"Hugging Face {config['model_type']}"
    report.loaded = {name: _own_name(array, config) for name, array in report.loaded.items()}
    report.left_over |= left_over
    if not preprocessor:
        report.notes.append("no preprocessor_config.json: uint8 input is normalised to [-1, 1]")
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
    """Our config of Hugging Face's config.json (and preprocessor_config.json) for `vivit` and `vit`."""
    kind = config.get("model_type")
    if kind not in ("vivit", "vit"):
        raise ValueError(f"model_type={kind!r}: only Hugging Face's vivit and vit can be loaded")
    if config.get("num_channels", 3) != 3:
        raise ValueError(f"num_channels={config['num_channels']}: only 3 channels")
    size = config.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    patch = config.get("patch_size", 16)
    tubelet = tuple(config.get("tubelet_size", (2, 16, 16))) if kind == "vivit" else (1, patch, patch)
    mean, std = _normalisation(preprocessor)
    return ViViTConfig.from_dict(
        {
            "variant": "model1",
            "frames": config.get("num_frames", 32) if kind == "vivit" else 1,
            "height": height,
            "width": width,
            "tubelet": tubelet,
            "dim": config.get("hidden_size", 768),
            "layers": config.get("num_hidden_layers", 12),
            "heads": config.get("num_attention_heads", 12),
            "mlp": config.get("intermediate_size", 3072),
            "classes": len(config.get("id2label") or {0: "", 1: ""}),
            "dropout": config.get("hidden_dropout_prob", 0.0),
            "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
            "layer_norm_eps": config.get("layer_norm_eps", 1e-6 if kind == "vivit" else 1e-12),
            "activation": _activation(config.get("hidden_act", "gelu_fast" if kind == "vivit" else "gelu")),
            "mean": mean,
            "std": std,
        }
    )


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
    if not path.is_file():
        if missing_ok:
            return {}
        raise FileNotFoundError(f"{path.parent}: no {path.name} in it")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _activation(name: str) -> str:
    if name in _TANH_GELU:
        return "gelu_tanh"
    if name != "gelu":
        raise ValueError(f"hidden_act={name!r}: must be gelu or one of {', '.join(_TANH_GELU)}")
    return "gelu"


def _normalisation(preprocessor: Mapping[str, Any] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of x / 255 that do what the processor does: rescale, offset, normalise."""
    found = preprocessor or {"do_normalize": False, "offset": True, "rescale_factor": 1 / 127.5}
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


def _own_name(array: str, config: Mapping[str, Any]) -> str:
    return hf_name(array, f"{config['model_type']}.")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

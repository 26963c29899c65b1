"""What timm says of one of its models: settings as fields of `ViViTConfig`, and preprocessing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.vivit.preprocessing import Preprocessing, of_timm

_POOLS = {"token": "token", "avg": "gap", "map": "map"}
_ACTIVATIONS = {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
_BLOCKS = ("Block", "LayerScaleBlock", "EvaBlock")


class TimmError(RuntimeError):
    """timm is not there, or does not work."""


def timm_package() -> Any:
    """The package timm.

    Raises:
        TimmError: It is missing, or cannot be imported.
    """
    try:
        import timm
    except ImportError as error:
        raise TimmError(
            f"needs the package timm ({error}): pip install 'tubelet[pretrained]', or give the folder or file"
        ) from error
    except RuntimeError as error:
        raise TimmError(
            f"timm cannot be imported: install a torchvision made for this torch ({error})"
        ) from error
    return timm


def is_timm_folder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one that timm pushes to the Hugging Face hub."""
    return "architecture" in config and "model_type" not in config


def read_folder(folder: Path) -> tuple[dict[str, Any], Preprocessing]:
    """Fields and preprocessing of a folder in timm's format; the model is built without its weights."""
    config = json.loads((folder / "config.json").read_text())
    name, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    # Nothing that makes timm fetch or read another file: the folder is not to be trusted.
    if not re.fullmatch(r"\w+", name) or any(
        re.search("path|pretrained|file|dir|url", key) for key in arguments
    ):
        raise ValueError(f"architecture={name!r}: not a model of timm's own with plain settings")
    arguments["num_classes"] = config.get("num_classes", 0)
    if config.get("global_pool") is not None:
        arguments["global_pool"] = config["global_pool"]
    try:
        with torch.device("meta"):
            model = timm_package().create_model(name, pretrained=False, **arguments)
    except TimmError:
        raise
    except Exception as error:
        raise ValueError(f"timm cannot make its {name} of this config.json: {error}") from error
    return _said(model, config.get("pretrained_cfg", {}))


def fetch(name: str) -> tuple[Mapping[str, Tensor], dict[str, Any], Preprocessing]:
    """Weights, fields and preprocessing of timm's model `name`, from timm's cache or the network."""
    model = timm_package().create_model(name, pretrained=True)
    return model.state_dict(), *_said(model, model.pretrained_cfg)


def _said(model: nn.Module, pretrained: Mapping[str, Any]) -> tuple[dict[str, Any], Preprocessing]:
    fields = timm_fields(model, pretrained)
    return fields, of_timm(pretrained, fields["height"])


def timm_fields(model: nn.Module, pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a timm model as fields of `ViViTConfig`.

    Args:
        model: The model, on any device.
        pretrained: timm's `pretrained_cfg`; its mean, std and input size count.

    A distilled DeiT is pooled by its class token alone; timm takes the mean with the distillation token.

    Raises:
        ValueError: Another architecture, named.
    """
    parts: Any = model
    kind = type(model).__name__
    if kind not in ("VisionTransformer", "VisionTransformerDistilled", "Eva"):
        raise ValueError(f"timm's {kind}: no plain ViT; choose a VisionTransformer")
    if kind == "Eva" and type(getattr(parts, "rope", None)).__name__ != "RotaryEmbeddingDinoV3":
        raise ValueError("timm's Eva: only as DINOv3, with its rotary positions; choose a VisionTransformer")
    block = parts.blocks[0]
    if type(block).__name__ not in _BLOCKS:
        raise ValueError(f"timm's {kind} with {type(block).__name__}: no plain ViT; choose another")
    h, w = parts.patch_embed.patch_size
    height, width = parts.patch_embed.img_size or pretrained.get("input_size", (3, 224, 224))[1:]
    has_cls = getattr(parts, "cls_token", None) is not None
    fields: dict[str, Any] = {
        "tubelet": (1, h, w),
        "height": height,
        "width": width,
        "dim": parts.embed_dim,
        "layers": len(parts.blocks),
        "heads": block.attn.num_heads,
        "mlp": block.mlp.fc1.out_features,
        "layer_norm_eps": block.norm1.eps,
        "activation": _activation(block.mlp.act),
        "registers": parts.num_prefix_tokens - has_cls,
        "embed_norm": not isinstance(getattr(parts, "norm_pre", nn.Identity()), nn.Identity),
        "fc_norm": not isinstance(parts.fc_norm, nn.Identity),
        "classifier": _POOLS.get(parts.global_pool or ("token" if has_cls else "avg")),
    }
    if fields["classifier"] is None:
        raise ValueError(f"timm's global_pool={parts.global_pool!r}: must be one of {', '.join(_POOLS)}")
    if has_cls and fields["classifier"] != "token":
        fields["class_token"] = True
    if kind == "Eva":
        if not block.attn.rotate_half:
            raise ValueError("timm's Eva with interleaved rotary positions: only as DINOv3; choose another")
        fields["rope"] = float(parts.rope.temperature)
    for name in ("mean", "std"):
        if name in pretrained:
            fields[name] = tuple(pretrained[name])
    return fields


def _activation(layer: nn.Module) -> str:
    name = type(layer).__name__
    if name == "GELU":
        return "gelu_tanh" if getattr(layer, "approximate", "none") == "tanh" else "gelu"
    if name not in _ACTIVATIONS:
        raise ValueError(f"timm's activation {name}: must be one of GELU, {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]

"""One safetensors file per model: weights, config and metadata together, and nothing that can be executed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from tubelet._version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version
from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.model import ViViT

FORMAT = "tubelet-vivit-1"


def save_model(path: str | os.PathLike[str], model: ViViT, metadata: dict[str, Any] | None = None) -> None:
    """Write weights, config and `metadata` (plain JSON values) to `path`; a reader never sees half a file."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        save_file(_tensors(model), part, metadata=_head(model, metadata or {}))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def model_to_bytes(model: ViViT) -> bytes:
    """What `save_model` would write, without metadata."""
    return save(_tensors(model), metadata=_head(model, {}))


def model_from_bytes(data: bytes) -> ViViT:
    """The model of `model_to_bytes`, in evaluation mode; no file is needed for it."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])["__metadata__"]
    return _built(ViViTConfig.from_dict(json.loads(head["config"])), load(data))


def _head(model: ViViT, metadata: dict[str, Any]) -> dict[str, str]:
    # Keys keep their order: that of several label sets says which logits are whose.
    return {
        "format": FORMAT,
        SCHEMA_KEY: str(SCHEMA_VERSION),
        "config": json.dumps(model.config.to_dict()),
        "metadata": json.dumps(metadata),
    }


def _tensors(model: ViViT) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file is one that `save_model` wrote.

    Raises:
        ValueError: No safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[ViViT, dict[str, Any]]:
    """The model of a file that `save_model` wrote, in evaluation mode on `device`, and its metadata.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not one of ours, or its weights do not fit its config.
    """
    config, metadata = read_header(path)
    with safe_open(path, framework="pt", device=str(device)) as file:
        count = len(file.keys())
        # Each layer has weights of its own: a config that asks for more would be built for hours.
        if config.layers > count or config.temporal_layers > count:
            raise ValueError(
                f"{path}: its weights do not fit its config: {count} tensors for {config.layers} layers"
            )
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        return _built(config, weights), metadata
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit its config: {error}") from error


def _built(config: ViViTConfig, weights: dict[str, torch.Tensor]) -> ViViT:
    with torch.device("meta"):
        model = ViViT(config)
    # Copies lie where torch aligns them: in place, addresses hang on the length of the header of the file,
    # and matrix products on CPUs give other last bits at other alignments.
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    return model.requires_grad_(True).eval()


def read_header(path: str | os.PathLike[str]) -> tuple[ViViTConfig, dict[str, Any]]:
    """Config and metadata of a model file, without its weights.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not one of ours; `NewerSchemaError` where a newer tubelet wrote it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
    except Exception as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    if head.get("format") != FORMAT:
        raise ValueError(f"{path}: a safetensors file, but not one that tubelet wrote (no config inside)")
    check_schema_version(head, str(path))
    return ViViTConfig.from_dict(json.loads(head["config"])), json.loads(head["metadata"])

"""Where a model's first weights come from: `init_from` takes anything that `tubelet train --init` accepts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.files import FORMAT, load_model
from tubelet.vivit.foreign import from_huggingface, from_npz, from_timm, hf_name, timm_name
from tubelet.vivit.huggingface import config_from_huggingface, read_json, read_weights
from tubelet.vivit.model import ViViT
from tubelet.vivit.report import LoadReport
from tubelet.vivit.scenic import read_arrays, to_scenic
from tubelet.vivit.transfer import InitOptions, Source, transfer

if TYPE_CHECKING:
    import numpy as np

    Weights = str | os.PathLike[str] | ViViT | Mapping[str, "np.ndarray[Any, Any] | Tensor"]


def init_from(model: ViViT, source: Weights, **options: Any) -> LoadReport:
    """Fill `model` in place from `source`; the report says what became of every weight of both.

    `source`: a `ViViT`; a file that `save_model` wrote, or a folder with it as `model.safetensors`; a
    Hugging Face folder (vivit or vit); the original's `.npz` (image or video); a state dict or arrays by
    name, or a file of them; `timm:NAME` or `hf:NAME`, fetched. `options` are those of `InitOptions`. Raises
    `FileNotFoundError`, `ValueError` where the weights do not fit, `RuntimeError` where a package or the
    network is missing.
    """
    return transfer(model, read_source(source, model.config), InitOptions(**options))


def init_from_image(model: ViViT, source: Weights, **options: Any) -> LoadReport:
    """`init_from` for an image ViT (timm, Hugging Face, original `.npz`); a video model is refused."""
    found = read_source(source, model.config)
    kernel = found.arrays.get("embedding/kernel")
    if (kernel is not None and kernel.dim() == 5 and kernel.shape[0] > 1) or _has_time(found):
        raise ValueError(f"{found.name}: a video model, not an image ViT; use init_from_vivit")
    return transfer(model, found, InitOptions(**options))


def init_from_vivit(
    model: ViViT, source: Weights, *, grid: tuple[int, int, int] | None = None, **options: Any
) -> LoadReport:
    """`init_from` for another ViViT: another clip length, size, variant or head.

    `grid`: the source's tokens along time, height and width, needed where it is bare arrays of joint
    positions that do not fit (Model 2's, and files with a config, say it themselves).
    """
    found = read_source(source, model.config)
    if grid is not None:
        found = Source(found.name, found.arrays, found.left_over, grid, found.notes, found.names)
    return transfer(model, found, InitOptions(**options))


def read_source(source: Weights, config: ViViTConfig) -> Source:
    """Weights of any kind under the original's names; `config` is that of the model they are for."""
    if isinstance(source, ViViT):
        return _from_ours(source, f"a {source.config.variant}")
    if isinstance(source, Mapping):
        return _from_arrays(source, "the given arrays", config)
    name = os.fspath(source)
    if name.startswith("timm:"):
        return _from_arrays(_fetch_timm(name[5:]), name, config)
    path = Path(_fetch_huggingface(name[3:])) if name.startswith("hf:") else Path(name)
    if path.is_dir():
        return _from_folder(path, name, config)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file or folder of weights (nor timm:NAME, hf:NAME)")
    return _from_file(path, config)


def _from_ours(model: ViViT, name: str) -> Source:
    n_t, n_h, n_w = model.config.grid
    grid = (1 if model.config.factorised_encoder else n_t, n_h, n_w)
    return Source(name, to_scenic(model), grid=grid)


def _from_file(path: Path, config: ViViTConfig) -> Source:
    if path.suffix == ".npz":
        return _from_arrays(read_arrays(path), path.name, config)
    if path.suffix == ".safetensors":
        if _is_ours(path):
            return _from_ours(load_model(path)[0], path.name)
        return _from_arrays(load_file(path), path.name, config)
    if path.suffix in (".pt", ".pth", ".bin"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _from_arrays(state.get("state_dict", state.get("model", state)), path.name, config)
    raise ValueError(f"{path}: must be .safetensors, .npz, .pt, .pth or .bin, or a folder")


def _from_folder(folder: Path, name: str, config: ViViTConfig) -> Source:
    ours = folder / "model.safetensors"
    if ours.is_file() and _is_ours(ours):
        return _from_ours(load_model(ours)[0], name)
    theirs = read_json(folder / "config.json")
    preprocessor = read_json(folder / "preprocessor_config.json", missing_ok=True)
    found = config_from_huggingface(theirs, preprocessor)
    if found.heads != config.heads:
        raise ValueError(
            f"{name}: has {found.heads} attention heads, the model {config.heads}; set heads={found.heads}"
        )
    source = _from_arrays(read_weights(folder), name, config)
    n_t, n_h, n_w = found.grid
    notes = _differences(found, config, bool(preprocessor))
    return Source(name, source.arrays, source.left_over, (n_t, n_h, n_w), notes, source.names)


def _from_arrays(arrays: Mapping[str, Any], name: str, config: ViViTConfig) -> Source:
    named = read_arrays(arrays)
    if any(key.startswith("patch_embed.") for key in named):
        found, left_over = from_timm(named, config.heads)
        return Source(name, found, left_over, names={key: _fused(timm_name(key)) for key in found})
    if any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in named):
        found, left_over = from_huggingface(named, config.heads)
        prefix = next((p for p in ("vivit.", "vit.") if any(key.startswith(p) for key in named)), "")
        return Source(name, found, left_over, names={key: hf_name(key, prefix) for key in found})
    if not any("encoderblock_0/" in key for key in named):
        raise ValueError(
            f"{name}: not the weights of a ViT or ViViT that we know (timm, Hugging Face, original)"
        )
    return Source(name, *from_npz(named))


def _has_time(source: Source) -> bool:
    return any(key.startswith("TemporalTransformer") or "_time/" in key for key in source.arrays)


def _is_ours(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format") == FORMAT


def _fused(name: str) -> str:
    for part in ("q", "k", "v"):
        name = name.replace(f".attn.{part}.", ".attn.qkv.")
    return name


def _differences(theirs: ViViTConfig, ours: ViViTConfig, has_preprocessor: bool) -> tuple[str, ...]:
    """Settings that make the same weights compute something else; none of them is an error."""
    names = ["activation", "layer_norm_eps"] + (["mean", "std"] if has_preprocessor else [])
    return tuple(
        f"the source was trained with {name}={getattr(theirs, name)}, the model has {getattr(ours, name)}"
        for name in names
        if getattr(theirs, name) != getattr(ours, name)
    )


def _fetch_timm(name: str) -> Mapping[str, Tensor]:
    try:
        import timm
    except ImportError as error:
        raise RuntimeError(f"timm:{name} needs the package timm: pip install timm") from error
    state: Mapping[str, Tensor] = _fetch(
        f"timm:{name}", lambda: timm.create_model(name, pretrained=True).state_dict()
    )
    return state


def _fetch_huggingface(name: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise RuntimeError(
            f"hf:{name} needs the package huggingface_hub: pip install huggingface_hub"
        ) from error
    wanted = ["config.json", "preprocessor_config.json", "*.safetensors"]
    folder: str = _fetch(f"hf:{name}", lambda: snapshot_download(name, allow_patterns=wanted))
    return folder


def _fetch(name: str, fetch: Callable[[], Any]) -> Any:
    """Hubs raise errors of many kinds; all mean that the weights are not here."""
    try:
        return fetch()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise RuntimeError(
            f"{name}: cannot be fetched ({type(error).__name__}: {reason}); check the name and the network, "
            "or download it elsewhere and give the folder or file"
        ) from error

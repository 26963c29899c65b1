"""Weights under the names and in the layouts of the authors' code, both ways.

These names ('/'-joined flax names) are the one language of all conversions: every other format is
translated to them first. Kernels are `(in, out)`, query, key and value `(d, heads, d / heads)`, the
attention's output `(heads, d / heads, d)`, the embedding `(t, h, w, c, d)`, or `(h, w, c, d)` with uniform
frame sampling.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.model import ViViT
from tubelet.vivit.report import LoadReport

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, "np.ndarray[Any, Any] | Tensor"]

_PREFIXES = ("params/", "opt/target/", "optimizer/target/")


@dataclass(frozen=True)
class Entry:
    """One array of the original and where it lies in ours: `parameter`, or the third `part` of it."""

    name: str
    parameter: str
    shape: tuple[int, ...]
    transposed: bool = False
    part: int | None = None


def entries(config: ViViTConfig) -> list[Entry]:
    """Every array of a model, in the original's names."""
    t, h, w = config.tubelet
    kernel = (h, w, 3, config.dim) if config.tokeniser == "uniform" else (t, h, w, 3, config.dim)
    n_t, n_h, n_w = config.grid
    places = n_h * n_w if config.factorised_encoder else config.tokens
    found = _linear("embedding", "embedding", kernel)
    main = "SpatialTransformer" if config.factorised_encoder else "Transformer"
    heads, mlp = config.heads, config.mlp
    found += _encoder(config, main, "encoder", places, layers=config.layers, heads=heads, mlp=mlp)
    found += _image_parts(config, main)
    if config.variant == "model2":
        heads, mlp = config.temporal_heads or heads, config.temporal_mlp or mlp
        found += _encoder(
            config,
            "TemporalTransformer",
            "temporal_encoder",
            n_t,
            layers=config.temporal_layers,
            heads=heads,
            mlp=mlp,
        )
    width = config.pooled_width
    if config.temporal_pool == "attention":
        pool_heads, pool_mlp = config.temporal_heads or config.heads, config.temporal_mlp or config.mlp
        found += _attention_pool("MAPHead_0", "frame_pool", config.frame_width, pool_heads, pool_mlp)
    if config.pre_logits:
        found += _linear("pre_logits", "pre_logits", (width, config.pre_logits))
        width = config.pre_logits
    return found + _linear("output_projection", "head", (width, config.classes))


def to_scenic(model: ViViT) -> dict[str, Tensor]:
    """All weights of `model` as the original names and shapes them: detached views of its memory."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    return {entry.name: _to_array(state[entry.parameter], entry) for entry in entries(model.config)}


@torch.no_grad()
def assign(model: ViViT, arrays: Mapping[str, Tensor]) -> None:
    """Copy the given arrays into `model`; those not given stay as they are. Shapes must be the original's."""
    state = model.state_dict()
    for entry in entries(model.config):
        if entry.name in arrays:
            _to_array(state[entry.parameter], entry).copy_(arrays[entry.name])


def load_scenic(
    arrays: Arrays | str | os.PathLike[str], config: ViViTConfig, *, strict: bool = True
) -> tuple[ViViT, LoadReport]:
    """A model of `config` with the original's `arrays` (or an `.npz` of them), in evaluation mode.

    The report says what became of every weight. Names are the original's, for example
    "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"; a prefix
    "params/" is fine. Without `strict` the model keeps its start where an array is missing, and the report
    says so. Arrays that the model has no place for are `left_over`.

    Raises:
        ValueError: An array has the wrong shape, or is missing and `strict`.
    """
    named = read_arrays(arrays)
    model = ViViT(config)
    report = LoadReport("the original's arrays")
    wanted = {entry.name: entry for entry in entries(config)}
    missing = sorted(set(wanted) - set(named))
    if missing and strict:
        raise ValueError(f"{len(missing)} arrays are missing for this config, the first: {missing[0]}")
    check_shapes({name: named[name] for name in wanted if name in named}, wanted)
    assign(model, named)
    for name, entry in wanted.items():
        if name in missing:
            report.initialised[entry.parameter] = "not in the source"
        else:
            report.loaded[entry.parameter] = name
    report.left_over = dict.fromkeys(sorted(set(named) - set(wanted)), "the model has no such part")
    return model.eval(), report


def read_arrays(arrays: Arrays | str | os.PathLike[str]) -> dict[str, Tensor]:
    """Arrays by name as float32 tensors, without a common prefix; a path is an `.npz` (never unpickled)."""
    import numpy as np

    if isinstance(arrays, (str, os.PathLike)):
        with np.load(Path(arrays), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    found: dict[str, Tensor] = {}
    for name, value in arrays.items():
        if isinstance(value, Tensor) or value.dtype.kind == "f":
            prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
            found[name[len(prefix) :]] = torch.as_tensor(value).float()
    return found


def check_shapes(arrays: Mapping[str, Tensor], wanted: Mapping[str, Entry]) -> None:
    """Refuse arrays whose shapes are not the wanted ones.

    Raises:
        ValueError: Names the first such array.
    """
    for name, value in arrays.items():
        if tuple(value.shape) != wanted[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the model needs {wanted[name].shape}: "
                "choose the config that these weights were made with"
            )


def _to_array(parameter: Tensor, entry: Entry) -> Tensor:
    """A view of our parameter in the original's layout (so that writing to it writes ours)."""
    value = parameter if entry.part is None else parameter.chunk(3)[entry.part]
    if not entry.transposed:
        return value.view(entry.shape)
    # (out, in) with out or in split into several axes: split first, so that both stay views.
    inputs, outputs = _split(entry)
    value = value.view(*outputs, *inputs)
    n = len(outputs)
    return value.permute(*range(n, value.dim()), *range(n))


def _split(entry: Entry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input and the output axes of an array."""
    is_qkv = entry.part is not None
    at = 1 if is_qkv else len(entry.shape) - 1
    return entry.shape[:at], entry.shape[at:]


def _linear(name: str, parameter: str, kernel: tuple[int, ...]) -> list[Entry]:
    return [
        Entry(f"{name}/kernel", f"{parameter}.weight", kernel, transposed=True),
        Entry(f"{name}/bias", f"{parameter}.bias", kernel[-1:]),
    ]


def _norm(name: str, parameter: str, dim: int) -> list[Entry]:
    scale = Entry(f"{name}/scale", f"{parameter}.weight", (dim,))
    return [scale, Entry(f"{name}/bias", f"{parameter}.bias", (dim,))]


def _attention(name: str, parameter: str, dim: int, heads: int) -> list[Entry]:
    split = (heads, dim // heads)
    found = []
    for part, kind in enumerate(("query", "key", "value")):
        weight, bias = f"{parameter}.qkv.weight", f"{parameter}.qkv.bias"
        found.append(Entry(f"{name}/{kind}/kernel", weight, (dim, *split), transposed=True, part=part))
        found.append(Entry(f"{name}/{kind}/bias", bias, split, part=part))
    return found + _linear(f"{name}/out", f"{parameter}.out", (*split, dim))


def _block(config: ViViTConfig, name: str, parameter: str, heads: int, mlp: int) -> list[Entry]:
    dim = config.dim
    if config.variant == "model3":
        found = _norm(f"{name}/LayerNorm_mlp", f"{parameter}.norm_mlp", dim)
        for axis in ("space", "time"):
            found += _norm(f"{name}/LayerNorm_{axis}", f"{parameter}.norm_{axis}", dim)
            attention = f"{name}/MultiHeadDotProductAttention_{axis}"
            found += _attention(attention, f"{parameter}.attention_{axis}", dim, heads)
        mlp_name = f"{name}/MlpBlock"
    else:
        found = _norm(f"{name}/LayerNorm_0", f"{parameter}.norm1", dim)
        found += _norm(f"{name}/LayerNorm_1", f"{parameter}.norm2", dim)
        found += _attention(f"{name}/MultiHeadDotProductAttention_0", f"{parameter}.attention", dim, heads)
        mlp_name = f"{name}/MlpBlock_0"
    found += _linear(f"{mlp_name}/Dense_0", f"{parameter}.mlp.fc1", (dim, mlp))
    return found + _linear(f"{mlp_name}/Dense_1", f"{parameter}.mlp.fc2", (mlp, dim))


def _encoder(
    config: ViViTConfig, name: str, parameter: str, places: int, *, layers: int, heads: int, mlp: int
) -> list[Entry]:
    dim = config.dim
    has_cls = config.has_cls if parameter == "encoder" else config.pools_cls
    rows = places + has_cls
    found = [Entry(f"{name}/posembed_input/pos_embedding", f"{parameter}.position", (1, rows, dim))]
    if config.rope and parameter == "encoder":
        found = []
    if has_cls:
        cls = "cls" if name == "Transformer" else f"cls_{name}"
        found.append(Entry(cls, f"{parameter}.cls", (1, 1, dim)))
    for layer in range(layers):
        found += _block(config, f"{name}/encoderblock_{layer}", f"{parameter}.blocks.{layer}", heads, mlp)
    if config.classifier == "map":
        found += _attention_pool(f"{name}/MAPHead_0", f"{parameter}.attention_pool", dim, heads, mlp)
    return found + _norm(f"{name}/encoder_norm", f"{parameter}.norm", dim)


def _attention_pool(name: str, parameter: str, dim: int, heads: int, mlp: int) -> list[Entry]:
    """Under big_vision's names, as the original has no such pooling."""
    found = [Entry(f"{name}/probe", f"{parameter}.probe", (1, 1, dim))]
    found += _attention(f"{name}/MultiHeadDotProductAttention_0", f"{parameter}.attention", dim, heads)
    found += _norm(f"{name}/LayerNorm_0", f"{parameter}.norm", dim)
    found += _linear(f"{name}/MlpBlock_0/Dense_0", f"{parameter}.mlp.fc1", (dim, mlp))
    return found + _linear(f"{name}/MlpBlock_0/Dense_1", f"{parameter}.mlp.fc2", (mlp, dim))


def _image_parts(config: ViViTConfig, name: str) -> list[Entry]:
    """What image models bring and the original does not know, under names of the same kind."""
    found = []
    if config.registers:
        found.append(Entry(f"{name}/registers", "encoder.registers", (1, config.registers, config.dim)))
    return found + (
        _norm(f"{name}/embed_norm", "encoder.embed_norm", config.dim) if config.embed_norm else []
    )

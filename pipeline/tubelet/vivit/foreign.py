"""Other ViTs' weights under the original's names: Hugging Face (image and video), timm, original `.npz`.

A naming is a function from the original's name to the foreign one; reading inverts it. Kernels change
layout: torch's linear weights are `(out, in)`, its convolutions `(d, c, …)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Naming = Callable[[str], str]

_HF_PARTS = {
    "MultiHeadDotProductAttention_0/query": "attention.attention.query",
    "MultiHeadDotProductAttention_0/key": "attention.attention.key",
    "MultiHeadDotProductAttention_0/value": "attention.attention.value",
    "MultiHeadDotProductAttention_0/out": "attention.output.dense",
    "MlpBlock_0/Dense_0": "intermediate.dense",
    "MlpBlock_0/Dense_1": "output.dense",
    "LayerNorm_0": "layernorm_before",
    "LayerNorm_1": "layernorm_after",
}
_HF_WHOLE = {
    "embedding": "embeddings.patch_embeddings.projection",
    "Transformer/encoder_norm": "layernorm",
    "output_projection": "classifier",
    "cls": "embeddings.cls_token",
    "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
}
# How transformers 5 names them in memory, and as they are on disk.
_HF_IN_MEMORY = (
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_TIMM_PARTS = {
    "MultiHeadDotProductAttention_0/query": "attn.q",
    "MultiHeadDotProductAttention_0/key": "attn.k",
    "MultiHeadDotProductAttention_0/value": "attn.v",
    "MultiHeadDotProductAttention_0/out": "attn.proj",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
}
_TIMM_WHOLE = {
    "embedding": "patch_embed.proj",
    "Transformer/encoder_norm": "norm",
    "output_projection": "head",
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
}
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")


def hf_name(name: str, prefix: str = "vivit.") -> str:
    """What Hugging Face calls the original's array on disk; `prefix` is the backbone's."""
    found = _torch_name(name, _HF_WHOLE, _HF_PARTS, "encoder.layer.")
    return found if found.startswith("classifier") else prefix + found


def timm_name(name: str) -> str:
    """What timm calls the original's array, once its fused qkv is split into q, k and v."""
    return _torch_name(name, _TIMM_WHOLE, _TIMM_PARTS, "blocks.")


def from_huggingface(state: Mapping[str, Tensor], heads: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The original's arrays of a Hugging Face ViT or ViViT state dict; what is left over, and why."""
    renamed = {_on_disk(name): name for name in state}
    prefix = next((p for p in ("vivit.", "vit.") if any(name.startswith(p) for name in renamed)), "")
    values = {name: state[original] for name, original in renamed.items()}
    found, rest = _read(_with_zero_biases(values), lambda name: hf_name(name, prefix), heads)
    return found, {renamed.get(name, name): _hf_reason(name) for name in rest}


def from_timm(state: Mapping[str, Tensor], heads: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same of a timm VisionTransformer; layer scale is multiplied into the weights before it."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        fused = re.fullmatch(r"(blocks\.\d+\.attn\.)qkv\.(weight|bias)", name)
        if fused:
            split |= {
                f"{fused[1]}{part}.{fused[2]}": v for part, v in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            split[name] = value
    found, rest = _read(_scale_layers(_with_zero_biases(split)), timm_name, heads)
    _refuse_other_architectures(rest)
    return found, dict.fromkeys(rest, "ViViT has no such part")


def from_npz(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The original ViT `.npz` (vision_transformer and big_vision spell its modules differently)."""
    renames = (
        (r"MultiHeadDotProductAttention_\d+/", "MultiHeadDotProductAttention_0/"),
        (r"MlpBlock_\d+/", "MlpBlock_0/"),
        (r"LayerNorm_2/", "LayerNorm_1/"),
        (r"^head/", "output_projection/"),
        (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),
    )
    found = {}
    for original, value in arrays.items():
        name = original
        for old, new in renames:
            name = re.sub(old, new, name)
        found[name] = value
    return found, {}


def to_torch_layout(name: str, value: Tensor) -> Tensor:
    """An array of the original as the torch weight of the same meaning, contiguous."""
    if not name.endswith("/kernel"):
        return (value.reshape(-1) if name.endswith("/bias") else value).contiguous()
    if name == "embedding/kernel":
        return value.permute(-1, -2, *range(value.dim() - 2)).contiguous()
    outputs = 1 if "/out/" in name or value.dim() == 2 else value.dim() - 1
    return value.flatten(0, value.dim() - outputs - 1).flatten(1).T.contiguous()


def _read(state: Mapping[str, Tensor], naming: Naming, heads: int) -> tuple[dict[str, Tensor], list[str]]:
    layers = 1 + max(
        (int(n) for name in state for n in re.findall(r"(?:layer|blocks)\.(\d+)\.", name)), default=-1
    )
    names = {naming(name): name for name in _names(layers)}
    found = {
        names[name]: _from_torch_layout(names[name], v.float(), heads)
        for name, v in state.items()
        if name in names
    }
    return found, [name for name in state if name not in names]


def _names(layers: int) -> list[str]:
    whole = [
        name
        for name in _HF_WHOLE
        if "pos_embedding" not in name and name not in ("cls", "Transformer/encoder_norm")
    ]
    found = ["cls", "Transformer/posembed_input/pos_embedding"]
    found += [f"{name}/{kind}" for name in whole for kind in ("kernel", "bias")]
    found += [f"Transformer/encoder_norm/{kind}" for kind in ("scale", "bias")]
    for layer in range(layers):
        for part in _HF_PARTS:
            first = "scale" if part.startswith("LayerNorm") else "kernel"
            found += [f"Transformer/encoderblock_{layer}/{part}/{kind}" for kind in (first, "bias")]
    return found


def _torch_name(name: str, whole: Mapping[str, str], parts: Mapping[str, str], blocks: str) -> str:
    if name in whole:
        return whole[name]
    module, _, kind = name.rpartition("/")
    suffix = "bias" if kind == "bias" else "weight"
    block = _BLOCK.fullmatch(module)
    if block:
        return f"{blocks}{block[1]}.{parts[block[2]]}.{suffix}"
    return f"{whole[module]}.{suffix}"


def _from_torch_layout(name: str, value: Tensor, heads: int) -> Tensor:
    if name == "embedding/kernel":
        return value.permute(*range(2, value.dim()), 1, 0)
    split = (heads, value.shape[0] // heads)
    if re.search(r"/(query|key|value)/", name):
        return value.T.reshape(-1, *split) if name.endswith("kernel") else value.reshape(split)
    if name.endswith("/out/kernel"):
        return value.T.reshape(heads, value.shape[1] // heads, -1)
    return value.T if name.endswith("/kernel") else value


def _on_disk(name: str) -> str:
    for old, new in _HF_IN_MEMORY:
        name = re.sub(old, new, name)
    return name


def _with_zero_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Models without biases of query, key and value get zeros, which mean the same."""
    found = dict(state)
    for name, value in state.items():
        if re.search(r"(attention\.attention\.(query|key|value)|attn\.[qkv])\.weight$", name):
            found.setdefault(name.removesuffix("weight") + "bias", torch.zeros(value.shape[0]))
    return found


def _scale_layers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """gamma · (W x + b) = (gamma · W) x + gamma · b, so layer scale needs no place of its own."""
    for name in [name for name in state if re.search(r"\.ls[12]\.gamma$", name)]:
        gamma = state.pop(name)
        before = name.replace(".ls1.gamma", ".attn.proj.").replace(".ls2.gamma", ".mlp.fc2.")
        state[before + "weight"] = state[before + "weight"] * gamma[:, None]
        state[before + "bias"] = state[before + "bias"] * gamma
    return state


def _refuse_other_architectures(names: list[str]) -> None:
    """Parts that change what the blocks compute: without them the weights mean nothing."""
    other = [
        name for name in names if re.search(r"q_norm|k_norm|norm_pre|reg_token|rope|\.gate|w12|fc1_g", name)
    ]
    if other:
        raise ValueError(
            f"not a plain ViT: it has {other[0]}, which ViViT does not; choose a plain ViT checkpoint"
        )


def _hf_reason(name: str) -> str:
    if "pooler" in name:
        return "the classifier does not use the pooler"
    return "ViViT has no such part"

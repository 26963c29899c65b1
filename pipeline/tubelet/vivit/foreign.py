"""Other ViTs' weights under the original's names: torch's, as `families` reads them, and `.npz`.

A naming is a function from the original's name to the foreign one; reading inverts it. Kernels change
layout: torch's linear weights are `(out, in)`, its convolutions `(d, c, …)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from tubelet.vivit.families import Weights

POSITION = "Transformer/posembed_input/pos_embedding"
# Pooling by attention has no name in the original; big_vision's, which shares its style.
_POOL = "Transformer/MAPHead_0"
_POOL_PARTS = {
    "MultiHeadDotProductAttention_0/query": "q",
    "MultiHeadDotProductAttention_0/key": "k",
    "MultiHeadDotProductAttention_0/value": "v",
    "MultiHeadDotProductAttention_0/out": "proj",
    "LayerNorm_0": "norm",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
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
    POSITION: "embeddings.position_embeddings",
}
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
    POSITION: "pos_embed",
    "Transformer/registers": "reg_token",
    "Transformer/embed_norm": "norm_pre",
    f"{_POOL}/probe": "attn_pool.latent",
    **{f"{_POOL}/{part}": f"attn_pool.{name}" for part, name in _POOL_PARTS.items()},
}
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")


def hf_name(name: str, prefix: str = "vivit.") -> str:
    """What Hugging Face calls the original's array on disk; `prefix` is the backbone's."""
    found = _torch_name(name, _HF_WHOLE, _HF_PARTS, "encoder.layer.")
    return found if found.startswith("classifier") else prefix + found


def timm_name(name: str) -> str:
    """What timm calls the original's array, once its fused qkv is split into q, k and v."""
    return _torch_name(name, _TIMM_WHOLE, _TIMM_PARTS, "blocks.")


def from_weights(weights: Weights, heads: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A torch ViT's weights as the original's arrays, and each array's name in the source.

    Raises:
        ValueError: `heads` does not divide the width.
    """
    dim = weights.arrays["patch_embed.proj.weight"].shape[0]
    if dim % heads:
        raise ValueError(f"heads={heads}: must divide the source's dim={dim}")
    arrays, names = {}, {}
    for name in _names(int(weights.fields["layers"])):
        torch_name = timm_name(name)
        if torch_name not in weights.arrays and torch_name.startswith("norm."):
            torch_name = f"fc_{torch_name}"
        if torch_name in weights.arrays:
            arrays[name] = _from_torch_layout(name, weights.arrays[torch_name], heads)
            names[name] = weights.own.get(torch_name, torch_name)
    return arrays, names


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


def _names(layers: int) -> list[str]:
    found = ["cls", POSITION, "Transformer/registers", f"{_POOL}/probe"]
    modules = ["embedding", "output_projection", "Transformer/encoder_norm", "Transformer/embed_norm"]
    modules += [f"{_POOL}/{part}" for part in _POOL_PARTS]
    modules += [f"Transformer/encoderblock_{layer}/{part}" for layer in range(layers) for part in _HF_PARTS]
    for module in modules:
        first = "scale" if re.search(r"LayerNorm_\d$|_norm$", module) else "kernel"
        found += [f"{module}/{kind}" for kind in (first, "bias")]
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

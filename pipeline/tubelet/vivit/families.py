"""Weights of other libraries' ViTs under one naming: timm's, with query, key and value apart.

timm (VisionTransformer, Eva as DINOv3), Hugging Face (ViT, DeiT, MAE, DINOv2, DINOv3, CLIP, SigLIP,
VideoMAE, ViViT) and the original repositories of DINOv2 and VideoMAE. What only writes the same function
differently is brought to one form here: layer scale is multiplied into the weights before it, biases that a
family lacks are zeros, a distillation token is a register, and positions of CLS and registers are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# In this order, on each name of the source.
_RENAMES = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"^(module|model|vision_model|vit|vivit|deit|videomae|dinov2|dinov2_with_registers)\.", ""),
        (r"^vision_model\.", ""),
        (r"^encoder\.(?=(patch_embed|blocks|norm)\.)", ""),
        (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
        (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
        (r"^(embeddings\.)?register_tokens$", "reg_token"),
        (r"^(embeddings\.distillation_token|dist_token)$", "dist_token"),
        (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^(post_layernorm|layernorm)\.", "norm."),
        (r"^classifier\.", "head."),
        (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
        (r"^(blocks\.\d+)\.attention\.attention\.(query|key|value)\.", r"\1.attn.\2."),
        (r"^(blocks\.\d+)\.attention\.attention\.([qv])_bias$", r"\1.attn.\2.bias"),
        (r"^(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
        (r"^(blocks\.\d+)\.(?:attention|self_attn|attn)\.([qkv])_proj\.", r"\1.attn.\2."),
        (r"^(blocks\.\d+)\.(?:attention|self_attn)\.(?:o|out)_proj\.", r"\1.attn.proj."),
        (r"^(blocks\.\d+)\.attn\.([qv])_bias$", r"\1.attn.\2.bias"),
        (r"\.attn\.query\.", ".attn.q."),
        (r"\.attn\.key\.", ".attn.k."),
        (r"\.attn\.value\.", ".attn.v."),
        (r"\.(intermediate\.dense|mlp\.up_proj)\.", ".mlp.fc1."),
        (r"^(blocks\.\d+)\.(output\.dense|mlp\.down_proj)\.", r"\1.mlp.fc2."),
        (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
        (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
        (r"\.(layer_scale|ls|gamma_)([12])(\.lambda1|\.gamma)?$", r".ls\2.gamma"),
        (r"^head\.probe$", "attn_pool.latent"),
        (r"^head\.attention\.in_proj_(weight|bias)$", r"attn_pool.qkv.\1"),
        (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
        (r"^head\.layernorm\.", "attn_pool.norm."),
        (r"^head\.mlp\.", "attn_pool.mlp."),
    )
)
# Parts that change what is computed: without them the weights mean nothing.
_OTHER_ARCHITECTURES = re.compile(
    r"^blocks\.\d+\.(.*(q_norm|k_norm|gate|w12|w3\.|weights_in|fc1_g|rel_pos|relative_position|lambda_)"
    r"|attn\.norm\.|mlp\.norm\.|adapter)"
)
_ENTRY = re.compile(
    r"(cls_token|reg_token|dist_token|pos_embed)$|(patch_embed\.proj|norm_pre|norm|fc_norm|head)\.\w+$"
    r"|blocks\.\d+\.(attn\.([qkv]|proj)|mlp\.fc[12]|norm[12])\.\w+$|blocks\.\d+\.ls[12]\.gamma$"
    r"|attn_pool\.(latent|([qkv]|proj|norm|mlp\.fc[12])\.\w+)$"
)


@dataclass(frozen=True)
class Weights:
    """A ViT's weights under one naming.

    Attributes:
        arrays: float32 tensors by name; linear weights `(out, in)`, convolutions `(d, c, …)`.
        own: this naming's names to the source's.
        left_over: the source's names to why they are not used.
        notes: What was brought to another form.
    """

    arrays: Mapping[str, Tensor]
    own: Mapping[str, str]
    left_over: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of `ViViTConfig` that the shapes and names alone decide."""
        kernel, mlp = self.arrays["patch_embed.proj.weight"], self.arrays["blocks.0.mlp.fc1.weight"]
        layers = 1 + max(int(n) for name in self.arrays for n in re.findall(r"^blocks\.(\d+)\.", name))
        tubelet = tuple(kernel.shape[2:])
        found: dict[str, Any] = {
            "tubelet": (1, *tubelet) if len(tubelet) == 2 else tubelet,
            "dim": kernel.shape[0],
            "layers": layers,
            "mlp": mlp.shape[0],
            **self.parts,
        }
        if self.arrays.get("attn_pool.latent") is not None:
            return found | {"classifier": "map"}
        return found | {"classifier": "gap" if not self.has_cls or self.parts["fc_norm"] else "token"}

    @property
    def parts(self) -> dict[str, Any]:
        """The fields that say which parts there are beside those of a plain ViT."""
        registers = self.arrays.get("reg_token")
        return {
            "registers": 0 if registers is None else registers.shape[1],
            "embed_norm": "norm_pre.weight" in self.arrays,
            "fc_norm": "fc_norm.weight" in self.arrays,
        }

    @property
    def has_cls(self) -> bool:
        """Whether there is a class token."""
        return "cls_token" in self.arrays

    @property
    def has_sine_positions(self) -> bool:
        """VideoMAE's: fixed, so that no file holds them."""
        return "pos_embed" not in self.arrays and self.arrays["patch_embed.proj.weight"].dim() == 5

    @property
    def has_rotary_positions(self) -> bool:
        """DINOv3's: computed from the grid."""
        return "pos_embed" not in self.arrays and self.arrays["patch_embed.proj.weight"].dim() == 4

    @property
    def has_layer_scale(self) -> bool:
        """Whether the source had layer scale, which is now in the weights."""
        return any("layer scale" in note for note in self.notes)


def is_known(names: Mapping[str, Any]) -> bool:
    """Whether these look like the weights of a ViT in torch's layout."""
    renamed = {rename(name) for name in names}
    return "patch_embed.proj.weight" in renamed and any(name.startswith("blocks.0.") for name in renamed)


def rename(name: str) -> str:
    """The name of a source in this naming."""
    for old, new in _RENAMES:
        name = old.sub(new, name)
    return name


def read(state: Mapping[str, Tensor], places: int | None = None) -> Weights:
    """Any known ViT's weights under one naming.

    Args:
        state: Tensors by the source's names.
        places: Patches of one frame of the source, where that is known; else a square is looked for.

    Raises:
        ValueError: A part that changes what a block computes, and that ViViT lacks.
    """
    arrays: dict[str, Tensor] = {}
    own: dict[str, str] = {}
    left_over: dict[str, str] = {}
    for original, value in state.items():
        for name, part in _split_fused(rename(original), value.float()):
            if _OTHER_ARCHITECTURES.search(name):
                raise ValueError(
                    f"not a plain ViT: it has {original}, which ViViT does not; choose a plain ViT checkpoint"
                )
            if _ENTRY.match(name):
                arrays[name], own[name] = part, original
            else:
                left_over[original] = _reason(original)
    notes = [*_fold_layer_scale(arrays), *_zero_biases(arrays)]
    _one_head(arrays, own, left_over)
    notes += _shape_prefix(arrays, own, places)
    return Weights(arrays, own, left_over, tuple(notes))


def _split_fused(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    fused = re.fullmatch(r"(.*\.?(?:attn|attn_pool)\.)(qkv|kv)\.(weight|bias)", name)
    if not fused:
        return [(name, value)]
    parts = value.chunk(len(fused[2]))
    return [(f"{fused[1]}{part}.{fused[3]}", v) for part, v in zip(fused[2], parts, strict=True)]


def _fold_layer_scale(arrays: dict[str, Tensor]) -> list[str]:
    """Multiply layer scale into the weights: gamma · (W x + b) = (gamma · W) x + gamma · b."""
    names = [name for name in arrays if name.endswith(".gamma")]
    for name in names:
        gamma = arrays.pop(name)
        before = name.replace(".ls1.gamma", ".attn.proj.").replace(".ls2.gamma", ".mlp.fc2.")
        arrays[before + "weight"] = arrays[before + "weight"] * gamma[:, None]
        if before + "bias" in arrays:
            arrays[before + "bias"] = arrays[before + "bias"] * gamma
    return ["layer scale is multiplied into the weights before it"] if names else []


def _zero_biases(arrays: dict[str, Tensor]) -> list[str]:
    """Models without some biases (query, key, value; CLIP's embedding) get zeros, which mean the same."""
    missing = set()
    for name in list(arrays):
        if re.search(r"(\.[qkv]|patch_embed\.proj)\.weight$", name):
            bias = name.removesuffix("weight") + "bias"
            if bias not in arrays:
                arrays[bias] = torch.zeros(arrays[name].shape[0])
                missing.add(bias.split(".")[-2])
    return [f"no bias of {', '.join(sorted(missing))} in the source: zero"] if missing else []


def _one_head(arrays: dict[str, Tensor], own: dict[str, str], left_over: dict[str, str]) -> None:
    """Only a single linear layer is a classifier that has a place here."""
    head = arrays.get("head.weight")
    if head is not None and (head.dim() != 2 or "head.bias" not in arrays):
        for name in [name for name in arrays if name.startswith("head.")]:
            del arrays[name]
            left_over[own[name]] = "no classifier of one linear layer"


def _shape_prefix(arrays: dict[str, Tensor], own: dict[str, str], places: int | None) -> list[str]:
    """CLS, registers and their positions: afterwards positions are those of CLS (if any) and patches."""
    notes = []
    for name in ("cls_token", "reg_token", "dist_token", "pos_embed"):
        if name in arrays:
            arrays[name] = arrays[name].reshape(1, -1, arrays[name].shape[-1])
    if "dist_token" in arrays:
        extra = [arrays["dist_token"]] + ([arrays["reg_token"]] if "reg_token" in arrays else [])
        arrays["reg_token"] = torch.cat(extra, dim=1)
        own["reg_token"] = own["dist_token"]
        del arrays["dist_token"]
        notes.append("the distillation token is a register")
    if "pos_embed" not in arrays or "cls_token" not in arrays:
        return notes
    positions, registers = arrays["pos_embed"], arrays.get("reg_token")
    count = 0 if registers is None else registers.shape[1]
    prefix = _prefix_rows(positions.shape[1], count, places)
    if prefix == 0:
        row = torch.zeros(1, 1, positions.shape[-1])
        arrays["pos_embed"] = torch.cat((row, positions), dim=1)
        notes.append("the class token has no position in the source: zero")
    elif registers is not None and prefix > 1:
        arrays["reg_token"] = registers + positions[:, 1:prefix]
        arrays["pos_embed"] = torch.cat((positions[:, :1], positions[:, prefix:]), dim=1)
        notes.append("the registers' positions are added to them")
    return notes


def _prefix_rows(rows: int, registers: int, places: int | None) -> int:
    """How many positions come before those of the patches: of CLS and registers, of CLS alone, or none."""
    for prefix in dict.fromkeys((1 + registers, 1, 0)):
        patches = rows - prefix
        if patches == places if places is not None else patches > 0 and int(patches**0.5) ** 2 == patches:
            return prefix
    return 1


def _reason(name: str) -> str:
    if "pooler" in name:
        return "the classifier does not use the pooler"
    if re.search(r"(^|\.)(text_model|text_projection|visual_projection|logit_scale|logit_bias)", name):
        return "of the text tower, or of its projection"
    if "mask_token" in name or re.search(r"(^|\.)(decoder|encoder_to_decoder)", name):
        return "only for pretraining by masks"
    return "ViViT has no such part"

"""Weights from scratch, as the authors' code draws them (flax's initialisers).

LeCun normal (truncated at two standard deviations) for the embedding and `pre_logits`, Xavier uniform for
attention (each of query, key and value on its own) and MLP, normal of 0.02 for positions; CLS, biases and the
head are zeros, but for the MLP's biases (normal of 1e-6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.layers import Attention, Mlp

EMBEDDINGS = ("lecun", "average", "central")
TEMPORAL_ATTENTIONS = ("xavier", "zero_output", "zero")
# What truncation at two standard deviations leaves of a normal's standard deviation.
_TRUNCATED_STD = 0.87962566103423978


class _Parts(Protocol):
    """What of a ViViT is initialised: :class:`tubelet.vivit.ViViT` has these."""

    config: ViViTConfig
    embedding: nn.Linear
    encoder: Any
    temporal_encoder: Any
    pre_logits: nn.Linear | None
    head: nn.Linear
    frame_pool: Any

    def modules(self) -> Iterator[nn.Module]: ...


@torch.no_grad()
def initialise(model: _Parts, *, embedding: str = "lecun", temporal_attention: str = "xavier") -> None:
    """Draw all weights of `model` in place from the default generator.

    `embedding`: "lecun"; "average" repeats one drawn frame over the tubelet; "central" draws frame t // 2
    only and zeros the others (what the original means; its code zeros columns instead).
    `temporal_attention` (Model 3): "zero_output" starts it as no change of x, and it trains; "zero" zeros
    every kernel, as the original's option does, and then only its output bias ever gets a gradient.
    """
    if embedding not in EMBEDDINGS:
        raise ValueError(f"embedding={embedding!r}: must be one of {', '.join(EMBEDDINGS)}")
    if temporal_attention not in TEMPORAL_ATTENTIONS:
        raise ValueError(
            f"temporal_attention={temporal_attention!r}: one of {', '.join(TEMPORAL_ATTENTIONS)}"
        )
    for module in model.modules():
        _initialise_module(module)
    for encoder in (model.encoder, model.temporal_encoder):
        if encoder is not None:
            if encoder.position is not None:
                nn.init.normal_(encoder.position, std=0.02)
            if encoder.cls is not None:
                nn.init.zeros_(encoder.cls)
            if encoder.registers is not None:
                nn.init.normal_(encoder.registers, std=0.02)
            if encoder.attention_pool is not None:
                nn.init.xavier_uniform_(encoder.attention_pool.probe[0])
    if model.frame_pool is not None:
        nn.init.xavier_uniform_(model.frame_pool.probe[0])
    _lecun(model.embedding, model.config.tubelet[0], embedding)
    if model.pre_logits is not None:
        _lecun(model.pre_logits)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    if temporal_attention != "xavier":
        zero_temporal_attention(cast("nn.Module", model), everything=temporal_attention == "zero")


@torch.no_grad()
def zero_temporal_attention(model: nn.Module, *, everything: bool = False) -> list[str]:
    """Make Model 3's temporal attention add nothing at first; returns the names of the parameters zeroed.

    `everything` zeros query, key and value as well, as the original does; these then never get a gradient.
    """
    zeroed = []
    for name, module in model.named_modules():
        if isinstance(module, Attention) and module.axis == "time":
            for part in ("qkv", "out") if everything else ("out",):
                linear: nn.Linear = getattr(module, part)
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
                zeroed += [f"{name}.{part}.weight", f"{name}.{part}.bias"]
    return zeroed


def _initialise_module(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, Attention):
        for weight in (*module.qkv.weight.chunk(3), module.out.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(module.qkv.bias)
        nn.init.zeros_(module.out.bias)
    elif isinstance(module, Mlp):
        for linear in (module.fc1, module.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)


def _lecun(linear: nn.Linear, frames: int = 1, over_time: str = "lecun") -> None:
    std = 1 / math.sqrt(linear.in_features) / _TRUNCATED_STD
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(linear.bias)
    if over_time != "lecun":
        _share_over_time(linear.weight.view(linear.out_features, frames, -1), over_time)


def _share_over_time(kernel: Tensor, over_time: str) -> None:
    """`(d, t, h·w·c)`, a view of the weight, changed in place."""
    first = kernel[:, :1].clone()
    if over_time == "average":
        kernel.copy_(first.expand_as(kernel))
    else:
        kernel.zero_()
        kernel[:, kernel.shape[1] // 2] = first[:, 0]

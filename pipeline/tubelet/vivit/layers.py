"""Attention over space, time or both, the MLP, and the blocks built of them.

Every block takes `(B, T, P, d)`: tokens by time index and place. "space" attends over the third axis,
"time" over the second. Model 1 has all its tokens in the third, so one attention serves all models.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.vivit.config import ViViTConfig

# Cosines and sines of rotary positions, each `(places, head size)`.
Rope = tuple[Tensor, Tensor]


def apply(module: nn.Module, *inputs: Tensor | Rope | None) -> Tensor:
    """`module(*inputs)`, typed: a call of a module is `Any` to the type checker."""
    found: Tensor = module(*inputs)
    return found


def rotary_positions(rows: int, columns: int, size: int, base: float, device: torch.device) -> Rope:
    """Rotary positions of a grid of patches in heads of `size` channels, float32.

    Row and column run over patch centres in -1…1, and each turns half of the channels at `size / 4`
    frequencies (DINOv3, arXiv 2508.10104).
    """
    frequencies = base ** -(torch.arange(0, 1, 4 / size, dtype=torch.float32, device=device))
    axes = [
        (torch.arange(0.5, count, dtype=torch.float32, device=device) / count) * 2 - 1
        for count in (rows, columns)
    ]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] * frequencies).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """`(…, P, size)` turned by its positions; tokens before the patches (CLS, registers) stay as they are."""
    cos, sin = (part.to(x.dtype) for part in rope)
    at = x.shape[-2] - cos.shape[0]
    prefix, patches = x[..., :at, :], x[..., at:, :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, turned), dim=-2)


class Attention(nn.Module):
    """Multi-head self-attention over `axis`: "space", "time", or "half".

    "half" is Model 4's: the first half of the heads attends over time, the second over space.
    The weight rows are [query; key; value], each head-major. SDPA takes views of what the projections return:
    for time, places and heads fold into one axis of independent sequences, so nothing copies q, k or v.
    """

    def __init__(self, dim: int, heads: int, axis: str = "space", dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.axis, self.dropout = heads, axis, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        """`(B, T, P, d)` to the same shape; `rope` (axis "space" only) turns queries and keys."""
        if self.axis == "half":
            half = x.shape[-1] // 2
            mixed = torch.cat((self._over_time(x, 0, half), self._over_space(x, half, 2 * half)), dim=-1)
        elif self.axis == "time":
            mixed = self._over_time(x, 0, x.shape[-1])
        else:
            mixed = self._fused_over_space(x, rope)
        return apply(self.out, mixed)

    def project(self, x: Tensor, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the channels `start` to `end` of each, `(…, end - start)`."""
        dim = x.shape[-1]
        rows = [slice(part * dim + start, part * dim + end) for part in range(3)]
        q, k, v = (F.linear(x, self.qkv.weight[row], self.qkv.bias[row]) for row in rows)
        return q, k, v

    def query(self, query: Tensor, x: Tensor) -> Tensor:
        """What `query` `(1, n, d)` gets from the tokens `(B, P, d)`: `(B, n, d)`."""
        B, P, d = x.shape
        weight, bias, size = self.qkv.weight, self.qkv.bias, (self.heads, d // self.heads)
        q = F.linear(query, weight[:d], bias[:d]).view(1, -1, *size).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = F.linear(x, weight[d:], bias[d:]).view(B, P, 2, *size).permute(2, 0, 3, 1, 4).unbind(0)
        return apply(self.out, self._attend(q, k, v).transpose(1, 2).flatten(2))

    def _fused_over_space(self, x: Tensor, rope: Rope | None) -> Tensor:
        B, T, P, d = x.shape
        qkv = self.qkv(x).view(B * T, P, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return self._attend(q, k, v).transpose(1, 2).reshape(B, T, P, d)

    def _over_space(self, x: Tensor, start: int, end: int) -> Tensor:
        B, T, P, d = x.shape
        shape = (B * T, P, -1, d // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.project(x, start, end))
        return self._attend(q, k, v).transpose(1, 2).reshape(B, T, P, end - start)

    def _over_time(self, x: Tensor, start: int, end: int) -> Tensor:
        B, T, P, d = x.shape
        shape = (B, T, -1, d // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.project(x, start, end))
        return self._attend(q, k, v).transpose(1, 2).reshape(B, T, P, end - start)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)


class Dropout(nn.Module):
    """Dropout whose mask may be shared along the time axis of `(B, T, P, d)`."""

    def __init__(self, rate: float, shared: bool) -> None:
        super().__init__()
        self.rate, self.shared = rate, shared

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, P, d)` to the same shape."""
        if not self.training or self.rate == 0:
            return x
        if not self.shared:
            return F.dropout(x, self.rate)
        return x * F.dropout(torch.ones_like(x[:, :1]), self.rate)


class StochasticDepth(nn.Module):
    """Drops a whole residual branch of an example (paper, equation 10).

    Kept branches are not scaled by 1 / (1 - rate) unless `scaling`, as in the original; `per_frame` draws for
    every time index of `(B, T, P, d)` on its own.
    """

    def __init__(self, rate: float, scaling: bool, per_frame: bool) -> None:
        super().__init__()
        self.rate, self.scaling, self.per_frame = rate, scaling, per_frame

    def forward(self, branch: Tensor) -> Tensor:
        """`(B, T, P, d)` to the same shape."""
        if not self.training or self.rate == 0:
            return branch
        draws = (branch.shape[0], branch.shape[1] if self.per_frame else 1, 1, 1)
        keep = torch.empty(draws, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        return branch * (keep / (1 - self.rate) if self.scaling else keep)


class Mlp(nn.Module):
    """Two linear layers with an activation between them; dropout after each."""

    def __init__(self, dim: int, hidden: int, activation: str, dropout: float, shared: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation
        self.drop = Dropout(dropout, shared)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, d)` to the same shape."""
        return apply(self.drop, self.fc2(self.drop(self._activate(self.fc1(x)))))

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


class AttentionPool(nn.Module):
    """Pooling by attention of one learned query, then an MLP with residual (big_vision's MAP head)."""

    def __init__(self, config: ViViTConfig, heads: int, mlp: int, dim: int | None = None) -> None:
        super().__init__()
        dim = dim or config.dim
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.attention = Attention(dim, heads, dropout=config.attention_dropout)
        self.norm = nn.LayerNorm(dim, config.layer_norm_eps)
        self.mlp = Mlp(dim, mlp, config.activation, config.dropout, shared=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, P, d)` to `(…, d)`."""
        pooled = self.attention.query(self.probe.to(x.dtype), x.flatten(0, -3))
        pooled = pooled + apply(self.mlp, self.norm(pooled))
        return pooled.view(*x.shape[:-2], -1)


class Block(nn.Module):
    """Pre-norm block of Models 1, 2 and 4: x + MSA(LN x), then x + MLP(LN x)."""

    def __init__(self, config: ViViTConfig, heads: int, mlp: int, drop_rate: float, shared: bool) -> None:
        super().__init__()
        axis = "half" if config.variant == "model4" else "space"
        self.norm1 = nn.LayerNorm(config.dim, config.layer_norm_eps)
        self.attention = Attention(config.dim, heads, axis, config.attention_dropout)
        self.norm2 = nn.LayerNorm(config.dim, config.layer_norm_eps)
        self.mlp = Mlp(config.dim, mlp, config.activation, config.dropout, shared)
        self.drop = Dropout(config.dropout, shared)
        per_frame = config.factorised_encoder and not shared
        self.depth = StochasticDepth(drop_rate, config.stochastic_depth_scaling, per_frame)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        """`(B, T, P, d)` to the same shape."""
        x = x + self.depth(self.drop(self.attention(self.norm1(x), rope)))
        return x + apply(self.depth, self.mlp(self.norm2(x)))


class FactorisedBlock(nn.Module):
    """Model 3's block: attention over one axis, over the other, then the MLP; each with norm and residual.

    Stochastic depth applies to each of the three branches (the original has the setting and never uses it
    here).
    """

    def __init__(self, config: ViViTConfig, heads: int, mlp: int, drop_rate: float, shared: bool) -> None:
        super().__init__()
        self.space_first = config.attention_order == "space_time"
        self.norm_space = nn.LayerNorm(config.dim, config.layer_norm_eps)
        self.attention_space = Attention(config.dim, heads, "space", config.attention_dropout)
        self.norm_time = nn.LayerNorm(config.dim, config.layer_norm_eps)
        self.attention_time = Attention(config.dim, heads, "time", config.attention_dropout)
        self.norm_mlp = nn.LayerNorm(config.dim, config.layer_norm_eps)
        self.mlp = Mlp(config.dim, mlp, config.activation, config.dropout, shared)
        self.drop = Dropout(config.dropout, shared)
        self.depth = StochasticDepth(drop_rate, config.stochastic_depth_scaling, per_frame=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, P, d)` to the same shape."""
        x = self._space(self._time(x)) if not self.space_first else self._time(self._space(x))
        return x + apply(self.depth, self.mlp(self.norm_mlp(x)))

    def _space(self, x: Tensor) -> Tensor:
        return x + apply(self.depth, self.drop(self.attention_space(self.norm_space(x))))

    def _time(self, x: Tensor) -> Tensor:
        return x + apply(self.depth, self.drop(self.attention_time(self.norm_time(x))))

"""Attention over space, time or both, the MLP, and the blocks built of them.

Every block takes `(B, T, P, d)`: tokens by time index and place. "space" attends over the third axis,
"time" over the second. Model 1 has all its tokens in the third, so one attention serves all models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.vivit.config import ViViTConfig


def apply(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, typed: a call of a module is `Any` to the type checker."""
    found: Tensor = module(x)
    return found


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

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, P, d)` to the same shape."""
        if self.axis == "half":
            half = x.shape[-1] // 2
            mixed = torch.cat((self._over_time(x, 0, half), self._over_space(x, half, 2 * half)), dim=-1)
        elif self.axis == "time":
            mixed = self._over_time(x, 0, x.shape[-1])
        else:
            mixed = self._fused_over_space(x)
        return apply(self.out, mixed)

    def project(self, x: Tensor, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the channels `start` to `end` of each, `(…, end - start)`."""
        dim = x.shape[-1]
        rows = [slice(part * dim + start, part * dim + end) for part in range(3)]
        q, k, v = (F.linear(x, self.qkv.weight[row], self.qkv.bias[row]) for row in rows)
        return q, k, v

    def _fused_over_space(self, x: Tensor) -> Tensor:
        B, T, P, d = x.shape
        qkv = self.qkv(x).view(B * T, P, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
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
        if not self.training or self.rate == 0:
            return branch
        draws = (branch.shape[0], branch.shape[1] if self.per_frame else 1, 1, 1)
        keep = torch.empty(draws, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        return branch * (keep / (1 - self.rate) if self.scaling else keep)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: str, dropout: float, shared: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.drop = Dropout(dropout, shared)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(F.gelu(self.fc1(x), approximate=self.approximate))
        return apply(self.drop, self.fc2(hidden))


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

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.depth(self.drop(self.attention(self.norm1(x))))
        return x + apply(self.depth, self.mlp(self.norm2(x)))


class FactorisedBlock(nn.Module):
    """Model 3's block: attention over one axis, over the other, then the MLP; each with LayerNorm and
    residual.

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
        x = self._space(self._time(x)) if not self.space_first else self._time(self._space(x))
        return x + apply(self.depth, self.mlp(self.norm_mlp(x)))

    def _space(self, x: Tensor) -> Tensor:
        return x + apply(self.depth, self.drop(self.attention_space(self.norm_space(x))))

    def _time(self, x: Tensor) -> Tensor:
        return x + apply(self.depth, self.drop(self.attention_time(self.norm_time(x))))

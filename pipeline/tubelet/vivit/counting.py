"""Parameters and multiply-accumulates by formula, without building a model.

The paper's "GFLOPs" are multiply-accumulates (XLA's floating-point operations halved, which also holds the
elementwise work). These formulas count the matrix products alone, and come within 1 % of its Table 2.
"""

from __future__ import annotations

from math import prod

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.scenic import entries

# Sizes of the paper, their tiny relatives, and the released L models of 24 temporal layers.
PRESETS = (
    *(
        f"{size}-{variant}"
        for size in ("tiny-8x2", "ti-16x2", "s-16x2", "b-16x2", "l-16x2", "h-14x2")
        for variant in ("model1", "model2", "model3", "model4", "average")
        # ViT-Ti has three heads, and Model 4 needs an even number.
        if (size, variant) != ("ti-16x2", "model4")
    ),
    "l-16x2-model2-lt24",
)


def gmacs(config: ViViTConfig) -> float:
    """Multiply-accumulates of one clip's forward pass in units of 10^9."""
    return sum(macs_by_part(config).values()) / 1e9


def macs_by_part(config: ViViTConfig) -> dict[str, int]:
    """Multiply-accumulates of one clip: embedding, spatial and temporal attention, MLP, head.

    Attention is its projections and its two products. Model 1's joint attention stands under "spatial";
    Model 4's projections are halved between the two.
    """
    d, n_t, places = config.dim, config.grid[0], config.grid[1] * config.grid[2]
    parts = {
        "embedding": config.tokens * config.token_values * d,
        "spatial": 0,
        "temporal": 0,
        "mlp": 0,
        "head": 0,
    }
    parts |= _encoder_macs(config, n_t, places)
    if config.variant == "model2":
        rows = n_t + config.pools_cls
        parts["temporal"] = config.temporal_layers * _attention(rows, rows, d)
        parts["mlp"] += config.temporal_layers * rows * 2 * d * (config.temporal_mlp or config.mlp)
    if config.variant in ("model3", "model4"):
        share = 1 if config.variant == "model3" else 2
        parts["temporal"] = config.layers * _attention(config.tokens, n_t, d) // share
        parts["spatial"] = config.layers * _attention(config.tokens, places, d) // share
    if config.classifier == "map":
        _add_attention_pools(parts, config)
    if config.temporal_pool == "attention":
        width = config.frame_width
        parts["temporal"] += 2 * width * width * (n_t + 1) + 2 * n_t * width
        parts["mlp"] += 2 * width * (config.temporal_mlp or config.mlp)
    hidden = config.pre_logits or config.pooled_width
    parts["head"] = hidden * config.classes + (config.pooled_width * hidden if config.pre_logits else 0)
    return parts


def parameter_count(config: ViViTConfig) -> int:
    """All parameters of `ViViT(config)`."""
    return sum(parameters_by_part(config).values())


def parameters_by_part(config: ViViTConfig) -> dict[str, int]:
    """Parameters: embedding, positions (with CLS), spatial and temporal attention, MLP, norms, head.

    Model 1's and 4's attention is one set of weights for both axes, and stands under "spatial".
    """
    parts = dict.fromkeys(("embedding", "positions", "spatial", "temporal", "mlp", "norms", "head"), 0)
    for entry in entries(config):
        parts[_part(entry.name)] += prod(entry.shape)
    return parts


def _part(name: str) -> str:
    if "pos_embedding" in name or name.startswith("cls") or name.endswith(("/registers", "/probe")):
        return "positions"
    if "Attention" in name:
        return "temporal" if name.startswith("TemporalTransformer") or "_time/" in name else "spatial"
    if "Norm" in name or "_norm/" in name:
        return "norms"
    if "MlpBlock" in name:
        return "mlp"
    return "embedding" if name.startswith("embedding") else "head"


def _encoder_macs(config: ViViTConfig, n_t: int, places: int) -> dict[str, int]:
    """Spatial attention and MLP of the main encoder, as far as it is joint or a frame's."""
    sequences, rows = (n_t, places) if config.factorised_encoder else (1, n_t * places)
    rows += config.prefix
    return {
        "spatial": config.layers * sequences * _attention(rows, rows, config.dim),
        "mlp": config.layers * sequences * rows * 2 * config.dim * config.mlp,
    }


def _add_attention_pools(parts: dict[str, int], config: ViViTConfig) -> None:
    """The one query's projections, attention and MLP, for each pooled sequence."""
    d, n_t = config.dim, config.grid[0]
    frames = n_t if config.factorised_encoder else 1
    pooled = [("spatial", frames, config.tokens // frames, config.mlp)]
    if config.variant == "model2":
        pooled.append(("temporal", 1, n_t, config.temporal_mlp or config.mlp))
    for part, sequences, rows, mlp in pooled:
        parts[part] += sequences * (2 * d * d * (rows + 1) + 2 * rows * d)
        parts["mlp"] += sequences * 2 * d * mlp


def _attention(tokens: int, attended: int, dim: int) -> int:
    """Projections of all tokens, and each token's two products with those it attends to."""
    return tokens * (4 * dim * dim + 2 * attended * dim)

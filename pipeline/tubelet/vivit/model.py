"""The ViViT family: one module for Models 1 to 4 and the average-pool baseline.

Source: arXiv 2103.15691, section 3; the authors' code decides where the paper is silent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.initialise import initialise
from tubelet.vivit.layers import AttentionPool, Block, Dropout, FactorisedBlock, apply, rotary_positions
from tubelet.vivit.tubelets import clip_to_tubelets, sample_frames_uniformly

Logits = Tensor | dict[str, Tensor]

# The middle of 0…255, and mean and std of a model that takes x - 127.5 as it is.
CENTRE = 127.5
FOLDED = ((0.5, 0.5, 0.5), (1 / 255, 1 / 255, 1 / 255))


class Encoder(nn.Module):
    """CLS token and registers (if any), learned or rotary positions, blocks, final LayerNorm, pooling.

    `activation_checkpointing`: recompute each block in the backward pass instead of keeping what it made.
    `main`: the encoder that sees patches, which alone has what image models bring (registers, the norm after
    the positions, rotary positions).
    """

    def __init__(
        self,
        config: ViViTConfig,
        *,
        positions: int,
        layers: int,
        heads: int,
        mlp: int,
        shared: bool = False,
        main: bool = True,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = False
        # Models 3 and 4 keep time and place apart, and still have a position of its own for every token.
        self.position_per_frame = config.variant in ("model3", "model4")
        self.classifier, self.fc_norm = str(config.classifier), config.fc_norm
        registers = config.registers if main else 0
        has_cls = config.has_cls if main else config.pools_cls
        self.prefix = has_cls + registers
        self.rope = (*config.grid[1:], config.dim // heads, config.rope) if config.rope and main else None
        self.cls = nn.Parameter(torch.empty(1, 1, config.dim)) if has_cls else None
        self.registers = nn.Parameter(torch.empty(1, registers, config.dim)) if registers else None
        rows = positions + has_cls
        self.position = nn.Parameter(torch.empty(1, rows, config.dim)) if self.rope is None else None
        self.drop = Dropout(config.dropout, shared)
        norms = config.embed_norm and main
        self.embed_norm = nn.LayerNorm(config.dim, config.layer_norm_eps) if norms else None
        rates = [config.stochastic_depth * layer / max(layers - 1, 1) for layer in range(layers)]
        block = FactorisedBlock if config.variant == "model3" else Block
        self.blocks = nn.ModuleList(block(config, heads, mlp, rate, shared) for rate in rates)
        self.norm = nn.LayerNorm(config.dim, config.layer_norm_eps)
        self.attention_pool = AttentionPool(config, heads, mlp) if config.classifier == "map" else None

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, P, d)` to `(B, T, prefix + P, d)`: CLS comes first, one a time index, then registers."""
        x = self._enter(x)
        rope = None if self.rope is None else (rotary_positions(*self.rope, x.device),)
        for block in self.blocks:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, *(rope or ()), use_reentrant=False)
            else:
                x = block(x, *(rope or ()))
        return x if self.fc_norm else apply(self.norm, x)

    def pool(self, tokens: Tensor) -> Tensor:
        """`(…, prefix + P, d)` of `forward` to `(…, d)`."""
        if self.classifier in ("token", "0"):
            pooled = tokens[..., 0, :]
        else:
            patches = tokens[..., self.prefix :, :]
            if self.classifier == "token_gap":
                return torch.cat((tokens[..., 0, :], patches.mean(-2)), dim=-1)
            if self.attention_pool is not None:
                pooled = apply(self.attention_pool, patches)
            elif self.classifier == "gmp":
                pooled = patches.amax(-2)
            else:
                pooled = patches.sum(-2) if self.classifier == "gsp" else patches.mean(-2)
        return apply(self.norm, pooled) if self.fc_norm else pooled

    def frame_features(self, tokens: Tensor) -> Tensor:
        """`(…, prefix + P, d)` of `forward` to `(…, 2, d)`, of which `chosen` takes what `pool` gives."""
        mean = tokens[..., self.prefix :, :].mean(-2)
        mean = apply(self.norm, mean) if self.fc_norm else mean
        if self.classifier not in ("token", "gap", "token_gap"):
            first = self.pool(tokens)
        elif self.cls is not None:
            first = apply(self.norm, tokens[..., 0, :]) if self.fc_norm else tokens[..., 0, :]
        else:
            first = mean
        return torch.stack((first, mean), dim=-2)

    def chosen(self, frames: Tensor) -> Tensor:
        """`(…, 2, d)` of `frame_features` to what `pool` gives, `(…, frame width)`."""
        if self.classifier == "token_gap":
            return frames.flatten(-2)
        return frames[..., 1 if self.classifier == "gap" else 0, :]

    def _enter(self, x: Tensor) -> Tensor:
        """What the first block gets: tokens with their prefix and positions."""
        B, T, _, d = x.shape
        if self.cls is not None:
            x = torch.cat((self.cls.to(x.dtype).expand(B, T, 1, d), x), dim=2)
        if self.position is not None:
            x = x + self.position.view(1, T if self.position_per_frame else 1, -1, d)
        if self.registers is not None:
            at = int(self.cls is not None)
            registers = self.registers.to(x.dtype).expand(B, T, -1, d)
            x = torch.cat((x[:, :, :at], registers, x[:, :, at:]), dim=2)
        x = self.drop(x)
        return x if self.embed_norm is None else apply(self.embed_norm, x)


class ViViT(nn.Module):
    """A video classifier: tubelets or clips in, logits out.

    Weights are initialised as in the paper when made (the logits start at 0); on the meta device nothing is
    allocated: follow with `to_empty` and `reset_parameters`, or load weights with `assign=True`.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(config.token_values, config.dim)
        self.encoder = _encoder(config)
        self.temporal_encoder = _temporal_encoder(config) if config.variant == "model2" else None
        self.pre_logits = nn.Linear(config.pooled_width, config.pre_logits) if config.pre_logits else None
        self.head = nn.Linear(config.pre_logits or config.pooled_width, config.classes)
        self.frame_pool = _frame_pool(config)
        # On the meta device there is nothing to draw, and torch would import its compiler to find that out.
        if not self.head.weight.is_meta:
            self.reset_parameters()

    def forward(self, x: Tensor, features: bool = False) -> Logits | tuple[Logits, Tensor]:
        """Logits `(B, classes)`, or one such tensor per head; with `features` also the pooled `(B, d)`.

        `x`: uint8 tubelets `(B, tokens, t·h·w·3)` or clips `(B, T, H, W, 3)`, normalised here; or the same as
        floats, taken as already normalised.

        Raises:
            ValueError: The shape does not fit the config.
        """
        pooled = self.pool(self.encode(x))
        logits = self._classify(pooled)
        return (logits, pooled) if features else logits

    def frame_features(self, x: Tensor) -> Tensor:
        """What the spatial encoder of Model 2 or average sees in each time index: `(B, T, 2, d)`.

        Axis 2 holds the class token and the mean of the patch tokens, both after the encoder's final norm.
        Where the encoder pools otherwise (maximum, sum, learned query), or has no class token, what it pools
        takes the class token's place. T is the config's `grid[0]`: frames, where tubelets are one frame long.

        `x`: as `forward` takes it.

        Raises:
            ValueError: The shape does not fit the config, or the variant sees several frames at once.
        """
        config = self.config
        if not config.factorised_encoder:
            raise ValueError(
                f"{config.variant} has no features of single frames; only model2 and average have"
            )
        n_t, n_h, n_w = config.grid
        return self.encoder.frame_features(self.encoder(_by_frame(self.embed(x), n_t, n_h * n_w)))

    def classify_frames(self, frames: Tensor, features: bool = False) -> Logits | tuple[Logits, Tensor]:
        """`forward` of the clips whose `frame_features` are `frames` `(B, T, 2, d)`."""
        pooled = self.pool(self._over_frames(self.encoder.chosen(frames)))
        logits = self._classify(pooled)
        return (logits, pooled) if features else logits

    def encode(self, x: Tensor) -> Tensor:
        """The normalised tokens that are pooled: `(B, n, d)`; of Model 2 those of its temporal encoder."""
        n_t, n_h, n_w = self.config.grid
        tokens = self.embed(x)
        if not self.config.factorised_encoder:
            T, P = (1, self.config.tokens) if self.config.variant == "model1" else (n_t, n_h * n_w)
            return apply(self.encoder, _by_frame(tokens, T, P)).flatten(1, 2)
        return self._over_frames(self.encoder.pool(self.encoder(_by_frame(tokens, n_t, n_h * n_w))))

    def _over_frames(self, frames: Tensor) -> Tensor:
        """`(B, n_t, frame width)` to the tokens that are pooled."""
        if self.temporal_encoder is None:
            return frames
        return apply(self.temporal_encoder, frames.unsqueeze(1)).squeeze(1)

    def _classify(self, pooled: Tensor) -> Logits:
        hidden = pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))
        return self.split_heads(self.head(hidden))

    def pool(self, tokens: Tensor) -> Tensor:
        """`(B, n, d)` of `encode` to `(B, pooled width)`."""
        if self.config.variant == "average":
            return self._pool_frames(tokens)
        last = self.encoder if self.temporal_encoder is None else self.temporal_encoder
        return last.pool(tokens)

    def _pool_frames(self, frames: Tensor) -> Tensor:
        """`(B, n_t, frame width)` to `(B, pooled width)`."""
        if self.frame_pool is not None:
            return apply(self.frame_pool, frames)
        mean = frames.mean(1)
        if self.config.temporal_pool == "mean_std":
            return torch.cat((mean, frames.std(1, correction=0)), dim=1)
        if self.config.temporal_pool == "mean_diff":
            # One frame has no neighbour, and no motion.
            steps = frames.diff(dim=1).abs().sum(1) / max(frames.shape[1] - 1, 1)
            return torch.cat((mean, steps), dim=1)
        return mean

    def embed(self, x: Tensor) -> Tensor:
        """Tokens `(B, tokens, d)` without positions.

        The normalisation of uint8 goes into the weights, which are fewer than the values of a clip. What
        enters the product is x - 127.5: exact in bfloat16, and without a large mean that rounded weights
        would amplify.
        """
        tubelets = self._tubelets(x)
        weight: Tensor = self.embedding.weight
        bias: Tensor = self.embedding.bias
        values = tubelets.to(weight.dtype)
        if tubelets.dtype == torch.uint8:
            values = values - CENTRE
            if (self.config.mean, self.config.std) != FOLDED:
                weight, bias = fold_into(weight, bias, self.config)
        return F.linear(values, weight, bias)

    def split_heads(self, logits: Tensor) -> Logits:
        """`(…, classes)` to one tensor a label set, in their order; unchanged where there is a single one."""
        if not self.config.heads_classes:
            return logits
        heads = self.config.label_heads
        return dict(zip(heads, torch.split(logits, list(heads.values()), dim=-1), strict=True))

    def reset_parameters(self) -> None:
        """Initialise all weights from scratch, from the default random generator."""
        initialise(self)

    def activation_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory in training: keep only the input of each block."""
        for encoder in (self.encoder, self.temporal_encoder):
            if encoder is not None:
                encoder.activation_checkpointing = on

    def _tubelets(self, x: Tensor) -> Tensor:
        config = self.config
        if x.dim() == 5 and tuple(x.shape[1:]) == (config.frames, config.height, config.width, 3):
            return clip_to_tubelets(self._sampled(x), config.tubelet)
        if x.dim() == 3 and x.shape[2] == config.token_values:
            if x.shape[1] == config.tokens:
                return x
            per_frame = config.tokens // config.grid[0]
            if config.tokeniser == "uniform" and x.shape[1] == config.frames * per_frame:
                return self._sampled(_by_frame(x, config.frames, per_frame)).flatten(1, 2)
        raise ValueError(
            f"input of shape {tuple(x.shape)}: expected tubelets (B, {config.tokens}, {config.token_values}) "
            f"or clips (B, {config.frames}, {config.height}, {config.width}, 3)"
        )

    def _sampled(self, x: Tensor) -> Tensor:
        """The frames (axis 1) that the tokeniser embeds."""
        if self.config.sampled_frames is None or self.config.sampled_frames == self.config.frames:
            return x
        picked = sample_frames_uniformly(self.config.frames, self.config.sampled_frames)
        return torch.stack([x[:, index] for index in picked], dim=1)


def _frame_pool(config: ViViTConfig) -> AttentionPool | None:
    if config.temporal_pool != "attention":
        return None
    heads, mlp = config.temporal_heads or config.heads, config.temporal_mlp or config.mlp
    return AttentionPool(config, heads, mlp, config.frame_width)


def _encoder(config: ViViTConfig) -> Encoder:
    n_t, n_h, n_w = config.grid
    positions = n_h * n_w if config.factorised_encoder else n_t * n_h * n_w
    shared = config.factorised_encoder and config.share_masks_over_frames
    return Encoder(
        config, positions=positions, layers=config.layers, heads=config.heads, mlp=config.mlp, shared=shared
    )


def _temporal_encoder(config: ViViTConfig) -> Encoder:
    return Encoder(
        config,
        positions=config.grid[0],
        layers=config.temporal_layers,
        heads=config.temporal_heads or config.heads,
        mlp=config.temporal_mlp or config.mlp,
        main=False,
    )


def _by_frame(x: Tensor, frames: int, places: int) -> Tensor:
    """`(B, frames·places, …)` to `(B, frames, places, …)`."""
    return x.reshape(x.shape[0], frames, places, *x.shape[2:])


def fold_into(weight: Tensor, bias: Tensor, config: ViViTConfig) -> tuple[Tensor, Tensor]:
    """Embedding weight `(d, k)` and bias `(d,)` for x - 127.5, from those for (x / 255 - mean) / std."""
    scale = [1 / (255 * std) for std in config.std]
    shift = [(CENTRE / 255 - mean) / std for mean, std in zip(config.mean, config.std, strict=True)]
    if any(shift):
        channels = weight.view(weight.shape[0], -1, len(shift)).sum(1).unbind(1)
        bias = bias + sum(channel * by for channel, by in zip(channels, shift, strict=True))
    if len(set(scale)) == 1:
        return weight * scale[0], bias
    parts = weight.view(weight.shape[0], -1, len(scale)).unbind(2)
    return torch.stack([part * by for part, by in zip(parts, scale, strict=True)], dim=2).flatten(1), bias


@torch.no_grad()
def fold_normalisation(model: ViViT) -> ViViT:
    """Put the normalisation of uint8 input into the embedding for good, in place; logits stay equal.

    Afterwards `mean` is 1/2 and `std` 1/255: 127.5 is taken from uint8 input, exact in bfloat16, and the
    weights stay as they are; float input means x - 127.5.
    """
    weight, bias = fold_into(model.embedding.weight, model.embedding.bias, model.config)
    model.embedding.weight.copy_(weight)
    model.embedding.bias.copy_(bias)
    mean, std = FOLDED
    model.config = model.config.replace(mean=mean, std=std)
    return model

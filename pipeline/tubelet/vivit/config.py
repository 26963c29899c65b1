"""What a ViViT is made of: one frozen, checked dataclass, and the presets of the paper.

Source: "ViViT: A Video Vision Transformer", arXiv 2103.15691, sections 3 and 4.1, and the authors' code
where the paper is silent.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIANTS = ("model1", "model2", "model3", "model4", "average")
CLASSIFIERS = ("token", "gap", "gmp", "gsp", "map", "token_gap", "0")
TEMPORAL_POOLS = ("mean", "mean_std", "mean_diff", "attention")
TOKENISERS = ("tubelet", "uniform")
ATTENTION_ORDERS = ("space_time", "time_space")
ACTIVATIONS = ("gelu_tanh", "gelu", "quick_gelu")
# Settings that pretrained image models brought; files leave them out where they have no effect, so that a
# model without them is written, named and hashed as before there were any.
_ONLY_WHERE_SET = ("class_token", "registers", "embed_norm", "fc_norm", "rope", "temporal_pool")

# dim, layers, heads, mlp. The default clip of "tiny" is tiny as well, so that it trains in seconds.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (64, 2, 4, 128),
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
}
_PRESET = re.compile(
    r"(?P<size>[a-z]+)-(?P<patch>\d+)x(?P<t>\d+)-(?P<variant>model[1-4]|average)(-lt(?P<lt>\d+))?"
)


@dataclass(frozen=True)
class ViViTConfig:
    """Settings of one model, checked when made; `ValueError` names the field and says what would be right.

    `variant`: model1 (joint space-time attention), model2 (factorised encoder), model3 (factorised
    self-attention), model4 (factorised dot-product attention), average (Model 2 without its temporal
    transformer: frames averaged). `frames, height, width`: the clip in pixels. `tubelet`: (t, h, w) pixels
    of one token; what does not fill a tubelet is dropped at the end. `tokeniser="uniform"` embeds
    `sampled_frames` single frames with t = 1.

    What pretrained image models need, of the main (in Model 2 the spatial) encoder: `class_token`, also where
    it is not what is pooled (None: only where it is); `registers`, learned
    tokens between CLS and the patches that have no position (DINOv2, arXiv 2309.16588); `embed_norm`, a
    LayerNorm after the positions (CLIP); `rope`, the base of 2-D rotary positions, which then take the place
    of learned ones (DINOv3; Model 2 and average only). `fc_norm`: the final LayerNorm comes after pooling
    instead of before (VideoMAE). `classifier="map"` pools by attention of one learned query (SigLIP), and
    `activation="quick_gelu"` is x · sigmoid(1.702 x) (CLIP).

    `temporal_pool` (average only), how frames become a clip: "mean"; "mean_std" with their standard
    deviation beside it; "mean_diff" with the mean absolute difference of neighbouring frames; "attention" of
    one learned query. `classifier="token_gap"` (average only) takes the class token and the patches' mean.
    """

    variant: str = "model1"
    frames: int = 32
    height: int = 224
    width: int = 224
    tubelet: tuple[int, int, int] = (2, 16, 16)
    tokeniser: str = "tubelet"
    sampled_frames: int | None = None
    dim: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    # Model 2's temporal transformer; None: as the spatial one.
    temporal_layers: int = 4
    temporal_heads: int | None = None
    temporal_mlp: int | None = None
    # None: "token" where the variant has one (Models 1 and 2), else "gap".
    classifier: str | None = None
    classes: int = 0
    # Several label sets in one output projection, split in this order, e.g. {"noun": 300, "verb": 97}.
    heads_classes: Mapping[str, int] | tuple[tuple[str, int], ...] | None = None
    pre_logits: int | None = None
    attention_order: str = "space_time"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    # Rate of the last layer; layer l of L drops with rate * l / (L - 1).
    stochastic_depth: float = 0.0
    # Divide kept branches by the keep rate; the original does not.
    stochastic_depth_scaling: bool = False
    # Model 2: one dropout and drop-layer mask for all frames of a clip, as in the original.
    share_masks_over_frames: bool = True
    # uint8 input becomes (x / 255 - mean) / std per channel; float input is taken as already normalised.
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    layer_norm_eps: float = 1e-6
    activation: str = "gelu_tanh"
    class_token: bool | None = None
    registers: int = 0
    embed_norm: bool = False
    fc_norm: bool = False
    rope: float | None = None
    temporal_pool: str = "mean"

    def __post_init__(self) -> None:
        self._normalise_types()
        self._check_choices()
        self._check_numbers()
        self._check_clip()
        self._check_attention()
        self._check_classifier()
        self._check_pretrained_parts()

    # ---- what follows from the fields

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        t, h, w = self.tubelet
        return self.embedded_frames // t, self.height // h, self.width // w

    @property
    def embedded_frames(self) -> int:
        """Frames that reach the embedding: all, or `sampled_frames` with uniform sampling."""
        return self.sampled_frames if self.sampled_frames is not None else self.frames

    @property
    def tokens(self) -> int:
        """Tokens of a clip, without CLS."""
        n_t, n_h, n_w = self.grid
        return n_t * n_h * n_w

    @property
    def token_values(self) -> int:
        """Values of one token: t * h * w * 3."""
        t, h, w = self.tubelet
        return t * h * w * 3

    @property
    def label_heads(self) -> dict[str, int]:
        """Classes of each label set; a model with a single one calls it "label"."""
        return dict(self.heads_classes) if self.heads_classes else {"label": self.classes}

    @property
    def has_cls(self) -> bool:
        """Whether the main encoder has a class token."""
        return self.pools_cls if self.class_token is None else self.class_token

    @property
    def pools_cls(self) -> bool:
        """Whether the class token is what is pooled, so that Model 2's temporal encoder has one as well."""
        return self.classifier in ("token", "token_gap")

    @property
    def frame_width(self) -> int:
        """Values of what the main encoder pools: `dim`, or twice that."""
        return self.dim * (2 if self.classifier == "token_gap" else 1)

    @property
    def pooled_width(self) -> int:
        """Values of a pooled clip, which the head takes."""
        return self.frame_width * (2 if self.temporal_pool in ("mean_std", "mean_diff") else 1)

    @property
    def prefix(self) -> int:
        """Tokens before the patches in the main encoder: CLS and registers."""
        return self.has_cls + self.registers

    @property
    def factorised_encoder(self) -> bool:
        """Whether the encoder sees one time index at once (Model 2 and its average-pool baseline)."""
        return self.variant in ("model2", "average")

    # ---- making one

    @classmethod
    def preset(
        cls, name: str, classes: int = 0, heads_classes: Mapping[str, int] | None = None, **changes: Any
    ) -> ViViTConfig:
        """`SIZE-PATCHxT-VARIANT[-ltN]`, such as "b-16x2-model1"; `changes` are fields.

        Sizes are tiny, ti, s, b, l and h. Model 2 has four temporal layers as in the paper unless `-ltN` says
        otherwise: the released L models are "l-16x2-model2-lt24".
        """
        found = _PRESET.fullmatch(name.lower())
        if not found or found["size"] not in SIZES:
            raise ValueError(
                f"preset {name!r}: not known; write SIZE-PATCHxT-VARIANT, for example b-16x2-model1 or "
                f"l-16x2-model2-lt24, with SIZE of {', '.join(SIZES)} and VARIANT of {', '.join(VARIANTS)}"
            )
        if found["lt"] and found["variant"] != "model2":
            raise ValueError(f"preset {name!r}: only model2 has temporal layers; leave out -lt{found['lt']}")
        dim, layers, heads, mlp = SIZES[found["size"]]
        patch = int(found["patch"])
        fields: dict[str, Any] = {
            "variant": found["variant"],
            "tubelet": (int(found["t"]), patch, patch),
            "dim": dim,
            "layers": layers,
            "heads": heads,
            "mlp": mlp,
            "temporal_layers": int(found["lt"] or 4),
            "classes": classes,
            "heads_classes": heads_classes,
        }
        if found["size"] == "tiny":
            fields |= {"frames": 8, "height": 32, "width": 32}
        return cls.from_dict(fields | changes)

    def replace(self, **changes: Any) -> ViViTConfig:
        """A checked copy with some fields changed."""
        return ViViTConfig.from_dict(self.to_dict() | _free_class_count(changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found["heads_classes"] = dict(self.heads_classes) if self.heads_classes else None
        for name in _ONLY_WHERE_SET:
            if found[name] == type(self).__dataclass_fields__[name].default:
                del found[name]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViViTConfig:
        """The reverse of `to_dict`; an unknown field is refused with the valid ones."""
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(
                f"no field {', '.join(unknown)} in a ViViT config; the fields are {', '.join(names)}"
            )
        return cls(**values)

    # ---- checks

    def _normalise_types(self) -> None:
        for name, of in (("tubelet", int), ("mean", float), ("std", float)):
            value = getattr(self, name)
            if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 3:
                raise ValueError(f"{name}={value!r}: must be three numbers")
            object.__setattr__(self, name, tuple(of(part) for part in value))
        if self.heads_classes is not None:
            pairs = (
                self.heads_classes.items() if isinstance(self.heads_classes, Mapping) else self.heads_classes
            )
            object.__setattr__(self, "heads_classes", tuple((str(name), int(count)) for name, count in pairs))
            self._count_heads(dict(self.heads_classes))
        if self.classifier is None:
            object.__setattr__(self, "classifier", "gap" if self.variant in ("model3", "model4") else "token")

    def _count_heads(self, heads: dict[str, int]) -> None:
        total = sum(heads.values())
        if not heads or min(heads.values()) < 1:
            raise ValueError(
                f"heads_classes={heads}: give at least one class to each of one or more label sets"
            )
        if self.classes not in (0, total):
            raise ValueError(
                f"classes={self.classes}: heads_classes sum to {total}; leave classes out or set {total}"
            )
        object.__setattr__(self, "classes", total)

    def _check_choices(self) -> None:
        _one_of("variant", self.variant, VARIANTS)
        _one_of("classifier", str(self.classifier), CLASSIFIERS)
        _one_of("tokeniser", self.tokeniser, TOKENISERS)
        _one_of("attention_order", self.attention_order, ATTENTION_ORDERS)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("temporal_pool", self.temporal_pool, TEMPORAL_POOLS)

    def _check_numbers(self) -> None:
        for name in ("frames", "height", "width", "dim", "layers", "heads", "mlp", "temporal_layers"):
            _at_least_one(name, getattr(self, name))
        for name in ("temporal_heads", "temporal_mlp", "sampled_frames", "pre_logits"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if type(self.classes) is not int or self.classes < 1:
            raise ValueError(
                f"classes={self.classes!r}: a model needs at least one class; set classes or heads_classes"
            )
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be at least 0 and less than 1")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: must be greater than 0")
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps!r}: must be greater than 0")

    def _check_clip(self) -> None:
        for name, size, part in zip(
            ("frames", "height", "width"), (self.frames, self.height, self.width), self.tubelet, strict=True
        ):
            if not 1 <= part <= size:
                raise ValueError(
                    f"tubelet={self.tubelet}: its {name} part must be between 1 and {name}={size} of the clip"
                )
        if self.tokeniser == "tubelet" and self.sampled_frames is not None:
            raise ValueError(f'sampled_frames={self.sampled_frames}: only with tokeniser="uniform"')
        if self.tokeniser == "uniform":
            self._check_uniform()

    def _check_uniform(self) -> None:
        if self.tubelet[0] != 1:
            raise ValueError(
                f"tubelet={self.tubelet}: uniform sampling embeds single frames; set its first part to 1"
            )
        if self.sampled_frames is None or self.sampled_frames > self.frames:
            raise ValueError(
                f"sampled_frames={self.sampled_frames}: uniform sampling needs one up to frames={self.frames}"
            )

    def _check_attention(self) -> None:
        for name in ("heads", "temporal_heads"):
            heads = getattr(self, name)
            if heads is not None and self.dim % heads:
                raise ValueError(f"{name}={heads}: must divide dim={self.dim}")
        if self.variant == "model4" and self.heads % 2:
            raise ValueError(
                f"heads={self.heads}: Model 4 gives half of its heads to time, half to space; set an even one"
            )

    def _check_classifier(self) -> None:
        if self.variant in ("model3", "model4") and self.classifier in ("token", "0"):
            raise ValueError(
                f'classifier="{self.classifier}": {self.variant} has no CLS token; set "gap", "gmp" or "gsp"'
            )

    def _check_pretrained_parts(self) -> None:
        for name, value, plain in (
            ("temporal_pool", self.temporal_pool, "mean"),
            ("classifier", self.classifier, None),
        ):
            if self.variant != "average" and value != plain and value in (*TEMPORAL_POOLS, "token_gap"):
                raise ValueError(f'{name}="{value}": only with variant="average"')
        if self.classifier == "token_gap" and self.fc_norm:
            raise ValueError('classifier="token_gap": not with fc_norm, which norms one token')
        if type(self.registers) is not int or self.registers < 0:
            raise ValueError(f"registers={self.registers!r}: must be a whole number of at least 0")
        if self.registers and self.variant in ("model3", "model4"):
            raise ValueError(
                f"registers={self.registers}: {self.variant} has tokens of time and place only; set 0"
            )
        if self.registers and self.classifier == "0":
            raise ValueError(
                f'registers={self.registers}: classifier="0" pools a patch; set another classifier'
            )
        if self.pools_cls and self.class_token is False:
            raise ValueError('class_token=False: classifier="token" pools it; set classifier="gap"')
        if self.class_token and (self.variant in ("model3", "model4") or self.classifier == "0"):
            raise ValueError(f"class_token=True: {self.variant} with this classifier has none; leave it out")
        if self.rope is None:
            return
        if not self.factorised_encoder:
            raise ValueError(
                f"rope={self.rope}: rotary positions are those of one frame; "
                f"{self.variant} sees several at once: choose model2 or average"
            )
        if self.rope <= 0 or self.dim // self.heads % 4:
            raise ValueError(
                f"rope={self.rope}: needs a base above 0 and dim / heads ({self.dim // self.heads}) "
                "that 4 divides"
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


def _at_least_one(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")


def _free_class_count(changes: dict[str, Any]) -> dict[str, Any]:
    """New label sets bring their own total; a new single one replaces them."""
    if "heads_classes" in changes and "classes" not in changes:
        return changes | {"classes": 0}
    if "classes" in changes and "heads_classes" not in changes:
        return changes | {"heads_classes": None}
    return changes

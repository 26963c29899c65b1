"""Filling a model from an image ViT or from another ViViT (paper, section 3.4; the authors' options).

Everything happens under the original's names: each array of the source finds its place in the model, is
adapted where the shapes differ by design (positions, embedding), and the report says what became of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.initialise import zero_temporal_attention
from tubelet.vivit.model import ViViT
from tubelet.vivit.report import LoadReport
from tubelet.vivit.scenic import assign, check_shapes, entries, to_scenic

_CHOICES = {
    "position": ("auto", "tile", "resize", "resize_tile", "keep"),
    "embedding": ("central", "average", "average_arp", "keep"),
    "temporal_attention": ("zero_output", "zero", "copy", "keep"),
    "resize": ("source", "corners", "bicubic", "bicubic_antialias"),
}
POSITION = "posembed_input/pos_embedding"


@dataclass(frozen=True)
class InitOptions:
    """How to fill a model from other weights. In brackets: the original's setting.

    `position`: "tile" repeats the frame's grid over time; "resize" interpolates it (bilinear,
    corner-aligned); "resize_tile" does both; "auto" does what the two grids need, also between videos;
    "keep" leaves the model's own (restore_positional_embedding=False). `embedding`, image kernel to
    tubelet: "central" puts it at frame t // 2, "average" spreads it evenly, "average_arp" with the weights
    of approximate rank pooling, "keep" leaves the model's own (restore_input_embedding=False). `head` takes
    the classifier too (restore_output_proj).

    Model 3 has a second attention that an image lacks. `temporal_attention`: "zero_output" zeros its
    output, so that the model starts as the image model of each frame and learns; "zero" zeros all of
    it, as the original does with attention_kernel_init_method="zero": then only its output bias ever gets a
    gradient; "copy" takes the image's attention (init_temporal_transformer=True); "keep" leaves the model's
    own. `spatial_attention=False` leaves the model's own spatial attention
    (init_spatial_transformer=False).

    `resize`, of a frame's positions to another grid: "source" as the source's own library does it, "corners"
    bilinear with aligned corners (the original, and between videos), "bicubic", "bicubic_antialias".

    `spatial_cls`: Model 2's spatial CLS takes the image's; the original leaves it at zero, as its name
    differs.
    """

    position: str = "auto"
    embedding: str = "central"
    head: bool = False
    spatial_attention: bool = True
    temporal_attention: str = "zero_output"
    spatial_cls: bool = False
    resize: str = "source"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Source:
    """Weights under the original's names; `grid`: tokens along time, height, width (None: a square frame).

    `parts`: config fields that say which parts the source has beside those of a plain ViT (None: as a plain
    one). `resize`: how its library resizes the positions of a frame. `sine`: they are VideoMAE's fixed ones.
    """

    name: str
    arrays: Mapping[str, Tensor]
    left_over: Mapping[str, str] = field(default_factory=dict)
    grid: tuple[int, int, int] | None = None
    notes: tuple[str, ...] = ()
    # The report's names: the original's to the source's own.
    names: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Any] | None = None
    resize: str = "corners"
    sine: bool = False


@torch.no_grad()
def transfer(model: ViViT, source: Source, options: InitOptions) -> LoadReport:
    """Fill `model` in place; what became of every weight.

    Raises:
        ValueError: Shapes or parts differ without a rule; names what is right.
    """
    _check_parts(source, model.config, options)
    job = _Transfer(model, source, options)
    for name, value in source.arrays.items():
        job.place(name, value)
    return job.finish()


class _Transfer:
    def __init__(self, model: ViViT, source: Source, options: InitOptions) -> None:
        self.model, self.config, self.source, self.options = model, model.config, source, options
        self.entries = {entry.name: entry for entry in entries(model.config)}
        self.before = to_scenic(model)
        self.main = "SpatialTransformer" if self.config.factorised_encoder else "Transformer"
        self.found: dict[str, Tensor] = {}
        self.report = LoadReport(source.name, left_over=dict(source.left_over), notes=list(source.notes))
        self.from_image = not any("_time/" in name for name in source.arrays)

    def place(self, name: str, value: Tensor) -> None:
        """Find the places of one array, adapt it, or say why it is left over."""
        targets, reason = self._targets(name)
        targets = [target for target in targets if target in self.entries]
        for target in targets:
            fitted, how = self._fit(target, value)
            self.found[target] = fitted
            parameter = self.entries[target].parameter
            if how:
                self.report.adapted[parameter] = how
            else:
                self.report.loaded[parameter] = _parts_together(self._own_name(name))
        if not targets:
            self.report.left_over[self._own_name(name)] = reason

    def finish(self) -> LoadReport:
        if self.source.sine:
            self._sine_positions()
        if not self.found:
            raise ValueError(f"{self.source.name}: no weights of a ViT or ViViT in it")
        check_shapes(self.found, self.entries)
        assign(self.model, self.found)
        zeroed = self._zero_temporal()
        for name, entry in self.entries.items():
            if entry.parameter in zeroed:
                self.report.initialised[entry.parameter] = "zero, so that time adds nothing at first"
            elif name not in self.found:
                self.report.initialised[entry.parameter] = self._why_kept(name)
        return self.report

    # ---- where an array belongs

    def _targets(self, name: str) -> tuple[list[str], str]:
        """Names in the model, and the reason for the case that there are none."""
        top, _, rest = name.partition("/")
        if top in ("Transformer", "SpatialTransformer"):
            return self._in_encoder(rest)
        if top == "cls":
            wanted = "cls_SpatialTransformer" if self.options.spatial_cls else "cls"
            why = "Model 2's CLS has another name in the original (spatial_cls=True takes it)"
            return [wanted, "cls"], why if self.config.factorised_encoder else "the model has no CLS token"
        if top == "output_projection" and not self.options.head:
            return [], "the head is not taken over (head=True takes it)"
        if top == "embedding" and self.options.embedding == "keep":
            return [], "the embedding is kept as it is"
        return [name], "the model has no such part"

    def _in_encoder(self, rest: str) -> tuple[list[str], str]:
        if rest == POSITION and self.options.position == "keep":
            return [], "the positions are kept as they are"
        block = re.fullmatch(r"encoderblock_(\d+)/(.+)", rest)
        if not block:
            return [f"{self.main}/{rest}"], "the model has no such part"
        if int(block[1]) >= self.config.layers:
            return [], f"the model has {self.config.layers} layers"
        parts = self._model3_parts(block[2]) if self.config.variant == "model3" else [block[2]]
        names = [f"{self.main}/encoderblock_{block[1]}/{part}" for part in parts]
        return names, "no such part in the model's blocks"

    def _model3_parts(self, part: str) -> list[str]:
        module, _, rest = part.partition("/")
        attention = "MultiHeadDotProductAttention"
        axes = ["space"] if self.options.spatial_attention else []
        axes += ["time"] if self.options.temporal_attention == "copy" else []
        renamed = {
            f"{attention}_0": [f"{attention}_{axis}" for axis in axes],
            "LayerNorm_0": ["LayerNorm_space"],
            "LayerNorm_1": ["LayerNorm_mlp"],
            "MlpBlock_0": ["MlpBlock"],
        }
        return [f"{new}/{rest}" for new in renamed.get(module, [module])]

    # ---- how it becomes what the model needs

    def _fit(self, target: str, value: Tensor) -> tuple[Tensor, str]:
        wanted = self.entries[target].shape
        if tuple(value.shape) == wanted:
            return value, ""
        if target == "embedding/kernel":
            return inflate(value, wanted, self.options.embedding)
        if target.endswith(POSITION) and value.shape[-1] == wanted[-1]:
            return self._fit_position(target, value)
        return value, ""  # check_shapes tells the user

    def _fit_position(self, target: str, value: Tensor) -> tuple[Tensor, str]:
        has_cls = self._source_has_cls(target, value.shape[1])
        rows = value[:, 1:] if has_cls else value
        if target.startswith("TemporalTransformer"):
            fitted = resize_grid(rows, (rows.shape[1], 1, 1), (self.config.grid[0], 1, 1))
            how = "interpolated in time"
        else:
            fitted, how = self._fit_grid(rows)
        main = target.startswith(self.main)
        if self.config.has_cls if main else self.config.pools_cls:
            own = self.before[target][:, :1]
            fitted = torch.cat((value[:, :1] if has_cls else own, fitted), dim=1)
            how += "" if has_cls else ", the CLS row kept"
        return fitted, how + (", the CLS row dropped" if has_cls and not self.config.has_cls else "")

    def _source_has_cls(self, target: str, rows: int) -> bool:
        """Whether the source's positions begin with a CLS row: it has that token, and as many rows."""
        encoder = target.split("/", maxsplit=1)[0]
        names = ("cls", "cls_SpatialTransformer") if encoder == self.main else (f"cls_{encoder}",)
        if not any(name in self.source.arrays for name in names):
            return False
        if self.source.grid is not None or encoder != self.main:
            return True
        # Some timm models have a CLS token without a position.
        places = self.config.tokens // self.config.grid[0]
        return rows - 1 in (places, self.config.tokens) or int((rows - 1) ** 0.5) ** 2 == rows - 1

    def _fit_grid(self, rows: Tensor) -> tuple[Tensor, str]:
        n_t, n_h, n_w = self.config.grid
        new = (1 if self.config.factorised_encoder else n_t, n_h, n_w)
        old = self.source.grid if self.source.grid and _size(self.source.grid) == rows.shape[1] else None
        old = old or square_grid(rows.shape[1], new)
        how = self.options.position
        if how == "tile" and old[1:] != new[1:]:
            raise ValueError(
                f'position="tile": the source has {old[1]}x{old[2]} places per frame, the model {n_h}x{n_w}; '
                'use "resize_tile" or "auto"'
            )
        if how == "resize" and new[0] != 1:
            raise ValueError(
                'position="resize": only for Model 2, whose positions are those of a frame; use "auto"'
            )
        same = old[1:] == new[1:]
        words = "" if same else f"{old[1]}x{old[2]} interpolated to {n_h}x{n_w}"
        if old[0] != new[0]:
            over_time = f"tiled over {new[0]} time indices" if old[0] == 1 else f"time {old[0]} to {new[0]}"
            words = f"{words}, {over_time}" if words else over_time
        method = self.source.resize if self.options.resize == "source" else self.options.resize
        if same or method == "corners":
            return resize_grid(rows, old, new), words
        if old[0] != 1:
            raise ValueError(f'resize="{method}": only for the positions of a frame; use resize="corners"')
        frame = resize_frame(rows, old[1:], new[1:], antialias=method == "bicubic_antialias")
        return frame.repeat(1, new[0], 1), f"{words} ({method.replace('_', ', ')})"

    def _sine_positions(self) -> None:
        name = f"{self.main}/{POSITION}"
        self.found[name] = sine_positions(self.config.tokens, self.config.dim)
        self.report.adapted[self.entries[name].parameter] = "the source's fixed sine positions"

    # ---- the rest of the report

    def _zero_temporal(self) -> list[str]:
        if self.config.variant != "model3" or not self.from_image:
            return []
        if self.options.temporal_attention not in ("zero", "zero_output"):
            return []
        return zero_temporal_attention(self.model, everything=self.options.temporal_attention == "zero")

    def _why_kept(self, name: str) -> str:
        if name.startswith("output_projection"):
            return "a new head" if not self.options.head else "not in the source"
        if (name.endswith(POSITION) and self.options.position == "keep") or (
            name.startswith("embedding") and self.options.embedding == "keep"
        ):
            return "kept as asked"
        return "not in the source"

    def _own_name(self, name: str) -> str:
        return self.source.names.get(name, name)


def _check_parts(source: Source, config: ViViTConfig, options: InitOptions) -> None:
    """Refuse, by name, a model that would compute something else from these weights."""
    if source.parts is None:
        return
    if source.sine and config.variant != "model1":
        raise ValueError(
            f"{source.name}: attends to space and time at once; choose model1, not {config.variant}"
        )
    for name, value in source.parts.items():
        ours = getattr(config, name)
        if name == "rope" and value and not config.factorised_encoder:
            raise ValueError(
                f"{source.name}: rotary positions are those of one frame: choose model2 or average, "
                f"not {config.variant}"
            )
        if (ours or None) != (value or None):
            raise ValueError(f"{source.name}: has {name}={value}, the model {ours}; set {name}={value}")
    if options.resize != "source" and (source.sine or source.parts.get("rope")):
        raise ValueError(f'resize="{options.resize}": {source.name} has no learned positions to resize')


def inflate(kernel: Tensor, wanted: tuple[int, ...], how: str) -> tuple[Tensor, str]:
    """An image's kernel `(h, w, c, d)` as a tubelet's `(t, h, w, c, d)`; paper, equations 8 and 9.

    Raises:
        ValueError: Patch sizes differ, or a tubelet would have to become longer or shorter.
    """
    if kernel.shape[-1] != wanted[-1]:
        raise ValueError(
            f"the source has dim={kernel.shape[-1]}, the model dim={wanted[-1]}: "
            "choose a preset of the source's size"
        )
    if kernel.dim() == 5 and kernel.shape[0] == 1:
        kernel = kernel[0]
    if tuple(kernel.shape) == wanted:
        return kernel, ""
    if kernel.dim() != 4 or tuple(kernel.shape) != wanted[-4:] or len(wanted) != 5:
        raise ValueError(
            f"embedding: the source's kernel {tuple(kernel.shape)} does not fit the model's {wanted}, both "
            '(…, h, w, c, d); choose the tubelet and size of the source, or embedding="keep"'
        )
    t = wanted[0]
    weights = temporal_weights(t, how)
    return weights.view(-1, 1, 1, 1, 1) * kernel, f"inflated over {t} frames ({how})"


def temporal_weights(t: int, how: str) -> Tensor:
    """The factor of each frame of a tubelet, `(t,)`: central, average, or average_arp."""
    if how == "central":
        return torch.eye(t)[t // 2]
    if how == "average":
        return torch.full((t,), 1 / t)
    harmonic = torch.tensor([sum(1 / i for i in range(1, k + 1)) for k in range(t + 1)], dtype=torch.float64)
    k = torch.arange(1, t + 1)
    arp = 2 * (t - k + 1) - (t + 1) * (harmonic[t] - harmonic[k - 1])
    return (arp / t).float()


def resize_grid(rows: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """Positions `(1, old tokens, d)` to `(1, new tokens, d)`: linear with aligned corners along every axis.

    One time index becomes many by repeating it, many become one by their mean.
    """
    grid = rows.reshape(1, *old, -1).permute(0, 4, 1, 2, 3)
    if new[0] == 1 and old[0] > 1:
        grid = grid.mean(2, keepdim=True)
    if tuple(grid.shape[2:]) != new:
        grid = F.interpolate(grid, size=new, mode="trilinear", align_corners=True)
    return grid.permute(0, 2, 3, 4, 1).reshape(1, _size(new), -1)


def resize_frame(rows: Tensor, old: tuple[int, int], new: tuple[int, int], *, antialias: bool) -> Tensor:
    """Positions `(1, old places, d)` of a frame to `(1, new places, d)`: bicubic, half-pixel centres."""
    grid = rows.reshape(1, *old, -1).permute(0, 3, 1, 2)
    found = F.interpolate(grid, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    return found.flatten(2).transpose(1, 2)


def sine_positions(tokens: int, dim: int) -> Tensor:
    """The fixed positions of VideoMAE, `(1, tokens, dim)`: sines in even channels, cosines in odd ones."""
    channel = torch.arange(dim, dtype=torch.float64)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()[None]


def square_grid(tokens: int, like: tuple[int, int, int]) -> tuple[int, int, int]:
    """The grid of so many tokens: that of `like` where it fits, else one square frame."""
    if tokens == _size(like):
        return like
    if tokens == like[1] * like[2]:
        return 1, like[1], like[2]
    side = int(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f'{tokens} positions are no square frame; use position="keep"')
    return 1, side, side


def _size(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2]


def _parts_together(name: str) -> str:
    """Query, key and value make one parameter of ours."""
    return re.sub(r"/(query|key|value)/", "/{query,key,value}/", name)

"""The recipe: every setting of a training run, strict, with the paper's meaning of each.

A recipe is one YAML file (``jobs/tubelet_jobs/recipes/*.yaml``, or the user's own) plus ``key=value``
overrides. Settings of a part stand in a group (``optimiser.lr``); an override may leave the group out where
the name is unambiguous (``lr=0.1``). Sections are those of the ViViT paper, arXiv 2103.15691.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from tubelet.config import Settings, UserError, load_settings, read_yaml, valid_keys

if TYPE_CHECKING:
    from tubelet.clips import ClipSpec
    from tubelet.vivit import Preprocessing

Interpolation = Literal["bilinear", "bicubic"]

# What a resumed run may change without altering a single batch or weight.
RESUMABLE = frozenset(
    {
        "workers",
        "rank_cpus",
        "decode_workers",
        "checkpoint_every",
        "retain",
        "evaluation",
        "prefetch",
        "max_failures",
        "max_error_rate",
        "max_skipped_steps",
    }
)

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # of dropping: 1 would leave nothing
Decay = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]


class OptimiserSettings(Settings):
    """SGD with momentum as the paper (section 4.1), or AdamW."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: NonNegative = 0.1  # of the global batch; it does not change with the number of workers
    momentum: Rate = 0.9  # sgd: heavy ball, m = 0.9 m + g; p -= lr m
    nesterov: bool = False
    betas: tuple[Rate, Rate] = (0.9, 0.999)  # adamw
    eps: Positive = 1e-8  # adamw
    weight_decay: NonNegative = 0.0  # adamw: decoupled; spares biases, norms, positions and class tokens
    layer_decay: Decay = 1.0  # block i learns at lr * layer_decay^(blocks above it)
    clip_norm: Positive | None = 1.0  # of the global gradient, after the all-reduce


class ScheduleSettings(Settings):
    """Learning rate over the run: linear warm-up, then half a cosine to ``final_ratio`` of the base."""

    shape: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Whole | None = None
    warmup_epochs: NonNegative = 0.0  # used where warmup_steps is null
    final_ratio: Share = 0.0


class RandAugmentSettings(Settings):
    """Clip-consistent RandAugment (paper, table 7).

    ``layers`` operations of strength ``magnitude`` (0 to 10 and beyond: the released recipes use 15 and 20).
    """

    layers: Whole = 0
    magnitude: NonNegative = 15


class AugmentSettings(Settings):
    """What a training clip looks like. Every draw is a function of (seed, epoch, key) alone."""

    crop: Literal["jitter", "resized", "centre"] = "jitter"
    jitter: tuple[Positive, Positive] = (0.9, 1.33)  # of height and width, drawn apart, after short_side
    shift: Share = 1.0  # crop=jitter: how far from the centre the crop may lie; 1: anywhere, 0: nowhere else
    area: tuple[Decay, Decay] = (0.25, 1.0)  # crop=resized: share of the frame's area
    ratio: tuple[Positive, Positive] = (0.75, 1.3333)  # crop=resized: width over height
    flip: Share = 0.5  # set 0 where left and right differ in meaning
    colour: Share = 0.0  # probability of brightness, saturation, contrast and hue jitter
    grey: Share = 0.0  # probability of greyscale, drawn apart from colour
    randaugment: RandAugmentSettings = RandAugmentSettings()
    mixup: NonNegative = 0.0  # alpha of the Beta; 0: off
    cutmix: NonNegative = 0.0  # alpha of the Beta; with mixup too, each step draws one of the two


class RegularisationSettings(Settings):
    """What holds the model back from learning the training set by heart."""

    dropout: Rate = 0.0
    attention_dropout: Rate = 0.0
    droplayer: Rate = 0.0  # stochastic depth of the last layer, rising from 0 at the first
    label_smoothing: Rate = 0.0
    ema: Rate | None = None  # decay per step of the averaged weights, which are then the saved ones


class InitSettings(Settings):
    """How weights given by ``--init`` become this model's (paper, section 3.4)."""

    # Of a 2-D patch embedding: Eq. 9, Eq. 8, or none of it (the paper's table 1 compares the three).
    embedding: Literal["central", "average", "random"] = "central"
    position: Literal["tile", "resize", "resize_tile"] = "tile"
    temporal: Literal["zero_out", "zero", "copy"] = "zero_out"  # Model 3's temporal attention
    # Of a frame's positions to another grid: as the source's own library does it, or otherwise.
    resize: Literal["source", "corners", "bicubic", "bicubic_antialias"] = "source"
    # Model 2's spatial class token from the image's; null: yes, but for .npz files, as the authors' code.
    spatial_cls: bool | None = None


class EvaluationSettings(Settings):
    """Evaluation while training, on the ``split`` of the manifest."""

    every: Count | None = None  # steps; null: at the end only
    split: str = "val"
    views: str = "1x1"  # temporal clips x spatial crops
    batch: Count = 8

    @field_validator("views")
    @classmethod
    def _views(cls, value: str) -> str:
        from tubelet.clips import parse_views

        parse_views(value)
        return value


class SelectionSettings(Settings):
    """How a head on frozen features is chosen: by cross-validation on the training split alone.

    The grids were fixed by cross-validation on two small sets (see the recipe ``frozen``).
    """

    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Count = 3  # of the folds, drawn anew, for linear heads; the others take the first
    strengths: tuple[Positive, ...] = (0.001, 0.01, 0.1)  # C of the linear heads
    # Of Model 2's temporal transformer; the next is tried as long as the last layer has helped.
    temporal_layers: tuple[Count, ...] = (1, 2, 3, 4)
    probe_epochs: Whole = 15  # of attention pooling and temporal transformers; 0: linear heads alone
    # Seconds for a small ViViT from scratch, on all folds together; 0: none. null: 600
    # where there is a GPU; on processors those ten minutes have to be asked for.
    scratch_s: NonNegative | None = None
    scratch_steps: Count = 400  # at most; fewer where scratch_s asks for it
    # Fine-tuning everything is one more candidate. null: where there is a GPU.
    finetune: bool | None = None
    finetune_steps: Count = 100


class Recipe(Settings):
    """All settings of a training run. ``max_steps``, ``epochs`` or ``selection`` must be given."""

    usual_names: ClassVar[Mapping[str, str]] = {
        "learning_rate": "optimiser.lr",
        "base_lr": "optimiser.lr",
        "wd": "optimiser.weight_decay",
        "optimizer": "optimiser",
        "grad_clip": "optimiser.clip_norm",
        "max_grad_norm": "optimiser.clip_norm",
        "batch_size": "batch",
        "train_batch_size": "batch",
        "gradient_accumulation_steps": "accumulate",
        "num_frames": "frames",
        "clip_len": "frames",
        "frame_interval": "stride",
        "sampling_rate": "stride",
        "crop_size": "size",
        "image_size": "size",
        "resolution": "size",
        "num_epochs": "epochs",
        "max_epochs": "epochs",
        "steps": "max_steps",
        "num_steps": "max_steps",
        "num_workers": "decode_workers",
        "world_size": "workers",
        "warmup": "schedule.warmup_steps",
        "num_warmup_steps": "schedule.warmup_steps",
        "dtype": "precision",
        "amp": "precision",
        "gradient_checkpointing": "activation_checkpointing",
        "drop_path": "regularisation.droplayer",
        "drop_path_rate": "regularisation.droplayer",
        "ema_decay": "regularisation.ema",
        "save_steps": "checkpoint_every",
        "eval_steps": "evaluation.every",
        "arch": "model",
        "backbone": "model",
    }

    # Model
    model: str = "b-16x2-model1"
    model_options: Mapping[str, Any] = Field(default_factory=dict)  # what differs from the preset
    heads: tuple[str, ...] = ()  # columns label_<head> of the manifest; empty: the one column `label`
    multilabel: bool = False  # labels are lists; sigmoid and binary cross-entropy
    # What keeps its first weights. spatial: Model 2's encoder of the frames; its temporal transformer and the
    # head learn. backbone: all but the head. last:K: all but the last K layers and the head.
    freeze: str = "none"
    # Choose a head on frozen features instead of training by steps; null: train by steps.
    selection: SelectionSettings | None = None
    # Under so many labelled clips, `--init` without `--recipe` means the recipe `frozen`.
    few: Whole = 2000

    # Clip
    frames: Count = 32
    stride: Count | None = 2  # frames between two of the clip; null with fps null: the whole video
    fps: Positive | None = None  # sample by time instead of by stride
    size: Count | None = 224  # crop side, pixels; null: that of the weights of --init
    # Before the crop; null: as the weights of --init have it for their size, else size * 256 / 224.
    short_side: Count | None = None
    interpolation: Interpolation | None = None  # null: that of the weights of --init, else bilinear

    # Length and batch
    batch: Count = 64  # global, whatever the number of workers
    accumulate: Count = 1  # forward passes per step and rank; saves memory, changes nothing else
    max_steps: Count | None = None
    epochs: Positive | None = None
    seed: Whole = 0
    sampling: Literal["natural", "balanced"] = "natural"  # balanced: every class equally often

    # Machines
    workers: str = "1"  # ranks; "2..4" is elastic
    # Logical CPUs that a rank reserves beside its GPU. null: 1 with a GPU, next to nothing without, where
    # ranks and decoding share the cores. Set it to the cores of a node for one rank per node.
    rank_cpus: Positive | None = None
    decode_workers: Count | None = None  # null: what the cluster has left
    prefetch: Count = 2  # batches ready before a rank asks
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    activation_checkpointing: bool = False
    compile: bool = False
    max_failures: Annotated[int, Field(ge=-1)] = 3  # of workers before the run gives up; -1: never

    # Checkpoints and errors
    checkpoint_every: Count = 500  # steps
    retain: Count = 3  # newest complete checkpoints kept; the best is kept besides
    max_error_rate: Share = 0.2  # share of undecodable clips, among the last thousand, that ends the run
    # fp16: steps in a row that may be left out because a gradient is not finite. Its loss scale starts at
    # 2^16 and is halved each time; other precisions end at the first such step.
    max_skipped_steps: Whole = 24

    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    augment: AugmentSettings = AugmentSettings()
    regularisation: RegularisationSettings = RegularisationSettings()
    init: InitSettings = InitSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value: object) -> str:
        text = str(value)
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
        if not match or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
            raise ValueError("write a number of workers, or a range such as 2..4")
        return text

    @field_validator("freeze")
    @classmethod
    def _freeze(cls, value: str) -> str:
        if not re.fullmatch(r"none|spatial|backbone|last:[1-9]\d*", value):
            raise ValueError("write none, spatial, backbone, or last:K with K layers that learn")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.max_steps is None and self.epochs is None and self.selection is None:
            raise ValueError("max_steps or epochs must be set")
        if self.fps is not None and "stride" in self.model_fields_set and self.stride is not None:
            raise ValueError("stride and fps exclude each other: set one of them to null")
        if self.batch < self.world[0] * self.accumulate:
            raise ValueError(f"batch={self.batch} is smaller than workers x accumulate: raise batch=")
        return self

    @property
    def world(self) -> tuple[int, int]:
        """Smallest and largest number of ranks."""
        low, _, high = self.workers.partition("..")
        return int(low), int(high or low)

    @property
    def head_columns(self) -> dict[str, str]:
        """Manifest column of each head, in the order of the recipe; the one head is called ``label``."""
        return {head: f"label_{head}" for head in self.heads} if self.heads else {"label": "label"}

    def length(self, train_rows: int) -> tuple[int, int]:
        """Steps of the run and of its warm-up for ``train_rows`` training videos.

        An epoch is ``train_rows // batch`` steps, as in the paper's code. Where ``max_steps`` shortens (or
        lengthens) a recipe of ``epochs``, the warm-up keeps its share of the run.
        """
        epoch_steps = max(1, train_rows // self.batch)
        planned = int(epoch_steps * self.epochs) if self.epochs is not None else None
        total = self.max_steps or planned or 1
        warmup = self.schedule.warmup_steps
        if warmup is None:
            steps = self.schedule.warmup_epochs * epoch_steps
            warmup = int(steps * total / planned) if planned else int(steps)
        return total, min(warmup, total)

    def following(self, source: Preprocessing | None) -> Recipe:
        """With what it leaves open of a clip's size and interpolation as ``source`` has it."""
        if source is None:
            size, short_side, interpolation = self.size or 224, self.short_side, self.interpolation
        else:
            size = self.size or source.size
            short_side = self.short_side or max(size, round(size * source.short_side / source.size))
            interpolation = self.interpolation or source.interpolation
        filled = {"size": size, "short_side": short_side, "interpolation": interpolation or "bilinear"}
        return self.model_copy(update=filled)

    def clip_spec(self, tubelet: tuple[int, int, int]) -> ClipSpec:
        """How a clip is cut for a model with this ``tubelet`` (frames, height, width)."""
        from tubelet.clips import ClipSpec

        return ClipSpec(
            frames=self.frames,
            stride=None if self.fps is not None else self.stride,
            fps=self.fps,
            size=self.size or 224,
            short_side=self.short_side,
            tubelet=tubelet,
            interpolation=self.interpolation or "bilinear",
        )

    def changed(self, other: Recipe) -> list[str]:
        """Names of the settings that alter the stream or the weights and differ between the two."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [key for key in mine if key not in RESUMABLE and mine[key] != theirs[key]]

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that :func:`read_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file or a mapping; names of recipes are resolved by the command line.

    Raises:
        UserError: no such file, an unknown key (names the nearest), a bad value.
    """
    data = source if isinstance(source, Mapping) else read_yaml(source)
    items = [_qualify(item) for item in overrides]
    return load_settings(Recipe, _following(data, items), items)


def _following(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A recipe's settings that hang on one that is overridden, as far as they are not overridden themselves.

    ``short_side`` keeps its ratio to ``size``; ``epochs`` takes the place of the recipe's ``max_steps``.

    Raises:
        UserError: both lengths are given.
    """
    given = {key: value for key, sep, value in (item.partition("=") for item in overrides) if sep}
    found = dict(data)
    if {"epochs", "max_steps"} <= given.keys() and "null" not in (given["epochs"], given["max_steps"]):
        raise UserError("epochs and max_steps are two lengths of one run: set one of them")
    if "epochs" in given and "max_steps" not in given:
        found["max_steps"] = None
    size, side = given.get("size", ""), found.get("short_side")
    if size.isdigit() and "short_side" not in given and isinstance(side, int):
        found["short_side"] = round(side * int(size) / int(found.get("size") or size))
    return found


def _qualify(item: str) -> str:
    """Put the group before an override that leaves it out: ``lr=1`` is ``optimiser.lr=1``."""
    key, sep, value = item.partition("=")
    if not sep or key in Recipe.model_fields or "." in key:
        return item
    groups = [full for full in valid_keys(Recipe) if full.rsplit(".", 1)[-1] == key]
    return f"{groups[0]}={value}" if len(groups) == 1 else item

"""Everything about a training run that can be checked before Ray starts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.corpus.manifest import is_manifest
from tubelet.corpus.selection import read_labelled, select
from tubelet.corpus.versions import pinned_uri, split_version
from tubelet.inference.bundle import ModelBundle
from tubelet.storage import StorageOptions
from tubelet.storage.errors import DiskFullError
from tubelet.storage.lock import LockLostError
from tubelet.tracking.registry import MODEL_FILE
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.examples import NOT_NEEDED, Examples, load_examples
from tubelet.training.initial import Init, read_init
from tubelet.training.recipe import Recipe
from tubelet.training.request import Request
from tubelet.vivit import ViViTConfig
from tubelet.vivit.config import VARIANTS

# What a resume must know, and the weights of step 0: under a name that readers skip.
RECORD, INITIAL = "_train/run.json", "_train/initial"


@dataclass(frozen=True)
class Prepared:
    """A request that was found good, and what follows. ``record``: the run that it goes on with."""

    request: Request
    table: pa.Table
    examples: Examples
    validation: Examples | None
    config: ViViTConfig
    spec: ClipSpec
    total_steps: int
    warmup_steps: int
    record: dict[str, Any] | None
    start: int = 0
    """Step of the checkpoint that the run goes on from."""
    torn: Mapping[int, str] = field(default_factory=dict)
    """Later checkpoints that are not whole, with the reasons."""
    manifest: str = ""
    """The version of the manifest that is read, which can be read again."""

    def plan_text(self) -> str:
        """What the run would do, in a few lines."""
        recipe = self.request.recipe
        classes = ", ".join(f"{len(names)} classes of {head}" for head, names in self.examples.labels.items())
        where = "the start" if not self.start else f"step {self.start}"
        lines = [f"checkpoint step {s} is not whole ({why}): skipped" for s, why in self.torn.items()]
        if self.record is not None:
            lines.append(f"resumes from {where}")
        if self.validation is None:
            split = recipe.evaluation.split
            why = (
                f"none of the videos in split {split!r} has a class that is trained"
                if split in self.split_sizes()
                else f"no labelled videos in split {split!r}"
            )
            judged = (
                "figures are those of cross-validation"
                if recipe.selection is not None
                else "the run is not validated, and no step is called best"
            )
            lines.append(f"{why}: {judged}")
        if recipe.selection is not None:
            line = self._selection_line(classes)
            return "\n".join([line, f"labelled videos per split: {self._sizes_text()}", *lines])
        line = (
            f"train {recipe.model} on {len(self.examples)} videos ({classes}), clips {self.spec.sampling}: "
            f"{self.total_steps} steps of {recipe.batch} clips on {recipe.workers} ranks, "
            f"{self.total_steps * recipe.batch / len(self.examples):.1f} epochs; output {self.request.out}"
        )
        return "\n".join([line, f"labelled videos per split: {self._sizes_text()}", *lines])

    def _selection_line(self, classes: str) -> str:
        """What a choice among heads would do."""
        settings = self.request.recipe.selection
        assert settings is not None
        return (
            f"choose a head for {len(self.examples)} videos ({classes}) on frozen features of "
            f"{self.request.init}, clips {self.spec.sampling}, by cross-validation on the training split: "
            f"{settings.folds} folds, {settings.repeats} times; output {self.request.out}"
        )

    def _sizes_text(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.split_sizes().items())

    def split_sizes(self) -> dict[str, int]:
        """Labelled videos of each split of the manifest that can be used, the largest first."""
        rows = self.table
        for column in self.request.recipe.head_columns.values():
            rows = select(rows, None, labelled=True, head=column)
        counts: Counter[str] = Counter()
        for one in pc.value_counts(rows["split"]).to_pylist():
            counts[one["values"] or "(none)"] += one["counts"]
        return dict(counts.most_common())


def prepare(request: Request) -> Prepared:
    """Check the request against its manifest and its output.

    Raises:
        UserError: what is wrong with them, and what to do.
    """
    recipe, options = request.recipe, request.options
    record = _check_out(request)
    manifest = _manifest_of(request, record)
    # Of a corpus with few labels most is never looked at.
    table = read_labelled(manifest, recipe.head_columns.values(), without=NOT_NEEDED, options=options)
    examples = load_examples(table, recipe.head_columns, multilabel=recipe.multilabel)
    _check_resume(request, record, examples)
    validation = _validation_examples(request, table, examples)
    # What is said of the splits needs no more, and a million rows are a quarter of a gigabyte.
    table = table.select([*("key", "status", "split", "group"), *dict.fromkeys(recipe.head_columns.values())])
    config, spec = _model_and_clip(request, record, examples.labels)
    total, warmup = recipe.length(len(examples))
    start, torn = None, dict[int, str]()
    if record is not None:
        start, torn = CheckpointStore.of(request).newest_and_torn()
    return Prepared(
        request, table, examples, validation, config, spec, total, warmup, record, start or 0, torn, manifest
    )


def _manifest_of(request: Request, record: dict[str, Any] | None) -> str:
    """The version to read: the newest; of a run that goes on, the one that it began with."""
    root, version = split_version(storage.normalise_uri(request.manifest))
    began = str((record or {}).get("manifest", ""))
    if version is None and split_version(began)[0] == root and is_manifest(began, request.options):
        return began
    return pinned_uri(request.manifest, request.options)


def _model_and_clip(
    request: Request, record: dict[str, Any] | None, labels: dict[str, list[str]]
) -> tuple[ViViTConfig, ClipSpec]:
    """Model and clip of the recipe, with what ``--init`` decides of them; of a run that goes on, its own."""
    recipe, options = request.recipe, request.options
    if record is not None and record.get("init"):
        first = storage.join(request.out, INITIAL, MODEL_FILE)
        if "config" in record:
            config = ViViTConfig.from_dict(record["config"])
            clip = record.get("clip")
            return config, ClipSpec.model_validate(clip) if clip else _clip_spec(recipe, config)
        if storage.exists(first, request.out_options):
            config = ModelBundle.load(first, options=request.out_options).model.config
            return config, _clip_spec(recipe, config)
    init = read_init(request.init, request.tracking_uri, options) if request.init else None
    if init is None and recipe.freeze != "none" and not request.resume:
        raise UserError(f"freeze={recipe.freeze} needs --init: without it, random weights would stay random")
    if init is not None:
        recipe = recipe.following(init.preprocessing)
    config = model_config(recipe, labels, init)
    return config, _clip_spec(recipe, config)


def _validation_examples(request: Request, table: pa.Table, examples: Examples) -> Examples | None:
    """The videos to validate on, where the manifest has any of the classes that are trained."""
    recipe, split = request.recipe, request.recipe.evaluation.split
    if any(not len(select(table, split, labelled=True, head=h)) for h in recipe.head_columns.values()):
        return None
    found = load_examples(
        table, recipe.head_columns, multilabel=recipe.multilabel, split=split, labels=examples.labels
    )
    return found if len(found) else None


def _clip_spec(recipe: Recipe, config: ViViTConfig) -> ClipSpec:
    try:
        return recipe.clip_spec(config.tubelet)
    except ValidationError as error:
        raise UserError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error


def model_config(recipe: Recipe, labels: dict[str, list[str]], init: Init | None = None) -> ViViTConfig:
    """The preset of the recipe, for its clips and these classes, with what the source of ``init`` decides.

    ``model`` may also name a variant alone, such as ``model2``: size and tubelet are then the source's.

    Raises:
        UserError: no such preset, or its settings contradict each other.
    """
    sizes = {head: len(names) for head, names in labels.items()}
    fields: dict[str, Any] = {
        "frames": recipe.frames,
        "height": recipe.size or 224,
        "width": recipe.size or 224,
        "dropout": recipe.regularisation.dropout,
        "attention_dropout": recipe.regularisation.attention_dropout,
        "stochastic_depth": recipe.regularisation.droplayer,
    }
    fields |= {"heads_classes": sizes} if recipe.heads else {"classes": sizes["label"]}
    variant_alone = recipe.model in VARIANTS
    if variant_alone and init is None:
        raise UserError(
            f"model={recipe.model}: a variant alone takes its size from --init; name a preset such as "
            f"b-16x2-{recipe.model}, or give --init"
        )
    if init is not None:
        variant = recipe.model if variant_alone else recipe.model.split("-lt")[0].rpartition("-")[2]
        fields = init.fields(variant, size=variant_alone) | fields
        if recipe.selection is not None:
            fields |= _frame_fields(init)
    try:
        if variant_alone:
            return ViViTConfig.from_dict({"variant": recipe.model, **fields, **recipe.model_options})
        return ViViTConfig.preset(recipe.model, **{**fields, **recipe.model_options})
    except (ValueError, TypeError) as error:
        raise UserError(f"model={recipe.model}: {error}") from error


def _frame_fields(init: Init) -> dict[str, Any]:
    """What a frozen encoder gives of a frame: class token and patches where it has both.

    Raises:
        UserError: the source sees several frames at once.
    """
    source = init.source.fields
    if not init.embeds_frames:
        raise UserError(
            f"--init {init.name} sees several frames at once, frozen features are those of single frames: "
            "give weights of an image ViT, or another --recipe"
        )
    has_cls = source.get("class_token") or source.get("classifier") in ("token", "token_gap")
    if source.get("classifier") == "map" and not has_cls:
        return {}
    return {"classifier": "token_gap" if has_cls else "gap", "fc_norm": False}


def read_record(out: str, options: StorageOptions) -> dict[str, Any] | None:
    """What the run in ``out`` noted of itself; None where there is no run."""
    try:
        found = json.loads(storage.read_bytes(storage.join(out, RECORD), options))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_record(prepared: Prepared, run_id: str) -> None:
    """Note what a resume has to know."""
    record = {
        "recipe": prepared.request.recipe.model_dump(mode="json"),
        "fingerprint": prepared.examples.fingerprint,
        "manifest": prepared.manifest,
        "init": prepared.request.init,
        "config": prepared.config.to_dict(),
        "clip": prepared.spec.model_dump(mode="json"),
        "run_id": run_id,
    }
    target = storage.join(prepared.request.out, RECORD)
    storage.write_bytes(target, json.dumps(record, indent=1).encode(), prepared.request.out_options)


@contextmanager
def leaves_no_false_start(prepared: Prepared) -> Iterator[None]:
    """Takes back what a run has put into its new output, where it fails inside before any checkpoint.

    Else the same command, with its mistake mended, would be refused because the output exists.

    Raises:
        DiskFullError: as inside; where there is a checkpoint, the way on is told.
    """
    try:
        yield
    except LockLostError:
        raise  # what is there is another job's
    except BaseException as error:
        request = prepared.request
        store = CheckpointStore.of(request)
        newest = None if storage.is_remote(store.out) else max(store.steps(), default=None)
        if isinstance(error, DiskFullError) and newest is not None:
            where = str(error).partition(":")[0]
            raise DiskFullError(
                f"{where}: free some on that disk, then go on from step {newest} with --resume"
            ) from error
        if not request.resume and not store.steps():
            # The store may be what failed; the error to show is the first one.
            with suppress(Exception):
                for name in ("_train", "_few", "_oof"):
                    storage.delete_tree(storage.join(request.out, name), request.out_options)
                store.withdraw_after(-1)
        raise


def _is_free(out: str, options: StorageOptions) -> bool:
    """Whether nothing is at ``out`` but what a run leaves that never began (a lock, initial weights)."""
    return not storage.exists(out, options) or set(storage.list_names(out, options)) <= {"_lock", "_train"}


def _check_out(request: Request) -> dict[str, Any] | None:
    out, options = request.out, request.out_options
    record = read_record(out, options)
    if request.resume or (record is None and _is_free(out, options)):
        if record is None and storage.exists(storage.join(out, "model.safetensors"), options):
            raise UserError(f"{out} holds a model that no run here made: choose another --out")
        return record
    raise UserError(f"{out} exists: add --resume to go on with the run in it, or choose another --out")


def _check_resume(request: Request, record: dict[str, Any] | None, examples: Examples) -> None:
    if record is None:
        return
    changed = request.recipe.changed(Recipe.model_validate(record["recipe"]))
    if changed:
        raise UserError(
            f"--resume with changed settings ({', '.join(changed)}) would not be the same run: "
            "set them back, or choose another --out"
        )
    if record["fingerprint"] != examples.fingerprint:
        raise UserError(
            f"the training videos of {request.manifest} are not those that {request.out} began with: "
            f"give its manifest ({record['manifest']}), or choose another --out"
        )

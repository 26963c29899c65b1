"""Everything about a training run that can be checked before Ray starts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.corpus.manifest import read_manifest
from tubelet.corpus.selection import select
from tubelet.storage import StorageOptions
from tubelet.training.examples import Examples, load_examples
from tubelet.training.recipe import Recipe
from tubelet.vivit import ViViTConfig

# What a resume must know, and the weights of step 0: under a name that readers skip.
RECORD, INITIAL = "_train/run.json", "_train/initial"


@dataclass(frozen=True)
class Request:
    """What a person asks of ``train``."""

    recipe: Recipe
    manifest: str
    out: str
    init: str | None = None
    resume: bool = False
    tracking_uri: str | None = None
    experiment: str = "tubelet"
    name: str | None = None
    options: StorageOptions = field(default_factory=StorageOptions)


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

    def plan_text(self) -> str:
        """What the run would do, in a line or two."""
        recipe = self.request.recipe
        classes = ", ".join(f"{len(names)} classes of {head}" for head, names in self.examples.labels.items())
        return (
            f"train {recipe.model} on {len(self.examples)} videos ({classes}), clips {self.spec.sampling}: "
            f"{self.total_steps} steps of {recipe.batch} clips on {recipe.workers} ranks, "
            f"{self.total_steps * recipe.batch / len(self.examples):.1f} epochs; output {self.request.out}"
        )


def prepare(request: Request) -> Prepared:
    """Check the request against its manifest and its output.

    Raises:
        UserError: what is wrong with them, and what to do.
    """
    recipe, options = request.recipe, request.options
    record = _check_out(request)
    table = read_manifest(request.manifest, options=options)
    examples = load_examples(table, recipe.head_columns, multilabel=recipe.multilabel)
    _check_resume(request, record, examples)
    validation = _validation_examples(request, table, examples)
    config = model_config(recipe, examples.labels)
    spec = _clip_spec(recipe, config)
    total, warmup = recipe.length(len(examples))
    return Prepared(request, table, examples, validation, config, spec, total, warmup, record)


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


def model_config(recipe: Recipe, labels: dict[str, list[str]]) -> ViViTConfig:
    """The preset of the recipe, for its clips and these classes.

    Raises:
        UserError: no such preset, or its settings contradict each other.
    """
    sizes = {head: len(names) for head, names in labels.items()}
    fields: dict[str, Any] = {
        "frames": recipe.frames,
        "height": recipe.size,
        "width": recipe.size,
        "dropout": recipe.regularisation.dropout,
        "attention_dropout": recipe.regularisation.attention_dropout,
        "stochastic_depth": recipe.regularisation.droplayer,
    }
    fields |= {"heads_classes": sizes} if recipe.heads else {"classes": sizes["label"]}
    try:
        return ViViTConfig.preset(recipe.model, **{**fields, **recipe.model_options})
    except (ValueError, TypeError) as error:
        raise UserError(f"model={recipe.model}: {error}") from error


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
        "manifest": storage.normalise_uri(prepared.request.manifest),
        "init": prepared.request.init,
        "run_id": run_id,
    }
    target = storage.join(prepared.request.out, RECORD)
    storage.write_bytes(target, json.dumps(record, indent=1).encode(), prepared.request.options)


def _check_out(request: Request) -> dict[str, Any] | None:
    out, options = request.out, request.options
    record = read_record(out, options)
    if request.resume or not storage.exists(out, options):
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

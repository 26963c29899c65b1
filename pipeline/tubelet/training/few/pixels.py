"""Which candidates learn from pixels, within which budget; how the chosen one is trained on everything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import torch

from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.inference.bundle import ModelBundle
from tubelet.training.build import initial_model, stream_config
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.few.candidates import Candidate
from tubelet.training.few.folds import Folds
from tubelet.training.few.task import Task
from tubelet.training.few.trained import (
    PixelTask,
    decode,
    fitted_recipe,
    folds_at_once,
    seconds_per_step,
    trained_out_of_fold,
)
from tubelet.training.prepare import INITIAL, Prepared, model_config
from tubelet.training.recipe import AugmentSettings, OptimiserSettings, Recipe, ScheduleSettings
from tubelet.training.state import MODEL_FILE
from tubelet.vivit import ViViTConfig

# Fewer steps teach a model from scratch nothing: better no figure than a wrong one.
LEAST_STEPS = 50
# What a ViViT from scratch may take unasked, where there is a GPU.
SCRATCH_S = 600.0

_log = logging.getLogger(__name__)


class PixelCandidates:
    """The small ViViT from scratch, and everything fine-tuned, each where the settings ask for it.

    Args:
        tables: of the rows of ``task``, what the decoder needs, and what the manifest says of them.
        folds: of one repeat.
    """

    families = ("scratch", "finetune")

    def __init__(
        self,
        prepared: Prepared,
        task: Task,
        tables: tuple[pa.Table, pa.Table],
        folds: Folds,
        start_ray: Callable[[], None],
    ) -> None:
        self._prepared, self._task, self._folds = prepared, task, folds
        self._table, self._about = tables
        self._start_ray = start_ray
        self._recipes: dict[str, Recipe] = {}

    def candidates(self) -> Iterator[Candidate]:
        """Those that the settings and the machines allow; starts Ray only for them."""
        settings, request = self._prepared.request.recipe.selection, self._prepared.request
        assert settings is not None
        budget_s = settings.scratch_s
        if budget_s is None:
            budget_s = SCRATCH_S if self._has_gpu() else 0
            if not budget_s:
                _log.info(f"no ViViT from scratch is tried without a GPU; scratch_s={SCRATCH_S:g} tries one")
        if budget_s and request.scratch is not None:
            recipe = fitted_recipe(request.scratch, self._about, steps=settings.scratch_steps)
            yield from self._candidate("scratch", self._of_run(recipe), budget_s)
        if settings.finetune is False:
            return
        if settings.finetune or self._has_gpu():
            yield from self._candidate("finetune", finetune_recipe(request.recipe), None)

    def recipe_of(self, candidate: Candidate) -> Recipe:
        """The recipe of a candidate that these made."""
        return self._recipes[candidate.family]

    def _has_gpu(self) -> bool:
        # Features that are there already start no Ray: then this machine is asked.
        if not ray.is_initialized():
            return torch.cuda.is_available()
        return bool(ray.cluster_resources().get("GPU", 0) > 0)

    def _of_run(self, recipe: Recipe) -> Recipe:
        own = self._prepared.request.recipe
        kept = {name: getattr(own, name) for name in ("seed", "heads", "multilabel", "decode_workers")}
        return recipe.model_copy(update=kept)

    def _candidate(self, family: str, recipe: Recipe, budget_s: float | None) -> Iterator[Candidate]:
        self._start_ray()
        started_s = time.monotonic()
        pixels = self._pixels(family, recipe)
        clips = decode(pixels)
        rounds = -(-len(self._folds) // folds_at_once(len(self._folds)))
        if budget_s is None:
            whole_s = seconds_per_step(pixels, clips, steps=1) * (recipe.max_steps or 1) * rounds
            _log.info(f"fine-tuning everything in {len(self._folds)} folds: about {whole_s / 60:.0f} minutes")
        else:
            steps = int(budget_s / (seconds_per_step(pixels, clips) * rounds))
            if steps < LEAST_STEPS:
                _log.warning(
                    f"no ViViT from scratch is tried: {budget_s:g} s are enough for {steps} steps per fold"
                )
                return
            steps = min(steps, recipe.max_steps or steps)
            recipe = recipe.model_copy(update={"max_steps": steps})
            pixels = replace(pixels, recipe=recipe)
        logits = trained_out_of_fold(pixels, clips, self._folds)
        self._recipes[family] = recipe
        how = "from scratch" if family == "scratch" else "fine-tuned"
        name = f"{how}, {recipe.model}, {recipe.max_steps} steps"
        yield Candidate(name, family, logits, time.monotonic() - started_s)

    def _pixels(self, family: str, recipe: Recipe) -> PixelTask:
        config, weights = _config_of(self._prepared, recipe, family), None
        if family == "finetune":
            weights = _initial(self._prepared).model.state_dict()
        spec = _spec_of(self._prepared, recipe, family)
        request = self._prepared.request.model_copy(update={"recipe": recipe})
        changed = replace(self._prepared, request=request, spec=spec)
        return PixelTask(recipe, stream_config(changed, 1), self._table, self._task, config, weights)


def finetune_recipe(own: Recipe) -> Recipe:
    """Everything learns, the layers near the picture least."""
    settings = own.selection
    assert settings is not None
    return own.model_copy(
        update={
            "selection": None,
            "max_steps": settings.finetune_steps,
            "batch": 16,
            "optimiser": OptimiserSettings(name="adamw", lr=3e-4, weight_decay=0.05, layer_decay=0.75),
            "schedule": ScheduleSettings(warmup_steps=settings.finetune_steps // 10),
            "augment": AugmentSettings(jitter=(1.0, 1.15), flip=0.0),
        }
    )


def prepared_by_steps(prepared: Prepared, recipe: Recipe, family: str) -> Prepared:
    """The run that trains ``recipe`` on all of the training split; writes what its step 0 starts from."""
    config = _config_of(prepared, recipe, family)
    request = prepared.request.model_copy(update={"recipe": recipe, "init": None})
    total, warmup = recipe.length(len(prepared.examples))
    changed: dict[str, Any] = {"config": config, "spec": _spec_of(prepared, recipe, family)}
    run = replace(prepared, request=request, total_steps=total, warmup_steps=warmup, **changed)
    store = CheckpointStore.of(request)
    if family == "scratch" and store.newest() is None:
        initial_model(replace(run, record=None))
    return run


def _config_of(prepared: Prepared, recipe: Recipe, family: str) -> ViViTConfig:
    if family == "finetune":
        return prepared.config
    return model_config(recipe, prepared.examples.labels)


def _spec_of(prepared: Prepared, recipe: Recipe, family: str) -> ClipSpec:
    """How clips are cut; for weights that are fine-tuned, as they were trained."""
    if family == "finetune":
        return prepared.spec
    return recipe.clip_spec(_config_of(prepared, recipe, family).tubelet)


def _initial(prepared: Prepared) -> ModelBundle:
    request = prepared.request
    return ModelBundle.load(storage.join(request.out, INITIAL, MODEL_FILE), options=request.out_options)

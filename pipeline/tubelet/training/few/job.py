"""Training by choice: features once, candidates by cross-validation, and the best of them as the model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.selection import select
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.features import FeatureSpec
from tubelet.storage.lock import OutputLock
from tubelet.tracking import Tracker
from tubelet.training import fit as by_steps
from tubelet.training.few.assemble import Fitted, fit_chosen
from tubelet.training.few.candidates import (
    Candidate,
    Search,
    linear_candidates,
    probe_candidates,
)
from tubelet.training.few.choose import Choice, choose, leaking_groups
from tubelet.training.few.folds import Folds, make_folds
from tubelet.training.few.given import Given, Wanted, given_features, videos_of
from tubelet.training.few.pixels import PixelCandidates
from tubelet.training.few.probes import ProbeSettings
from tubelet.training.few.publish import log_choice, out_of_fold, publish_model, write_out_of_fold
from tubelet.training.few.task import Task
from tubelet.training.prepare import INITIAL, Prepared, write_record
from tubelet.training.recipe import Recipe, SelectionSettings
from tubelet.training.state import MODEL_FILE
from tubelet.vivit import ViViT

# What a resume has to know once a candidate that trains by steps was chosen.
CHOICE = "_few/choice.json"


def fit_few(
    prepared: Prepared,
    init_report: str,
    start_ray: Callable[[], None],
    say: Callable[[str], None],
    lock: OutputLock | None = None,
) -> dict[str, Any]:
    """Choose a head, or a model, for the training split, and publish it; returns the summary.

    Args:
        init_report: what :func:`tubelet.training.build.initial_model` said.
        start_ray: called once something is to be computed on the cluster.
        say: told what a person should read.
        lock: what the job holds its output by.

    Raises:
        UserError: too many videos failed; features cannot be kept; too few clips are left.
    """
    started_s = time.monotonic()
    with by_steps.start_tracker(prepared) as tracker:
        write_record(prepared, tracker.run_id)
        if init_report:
            tracker.log_text(init_report, "init.txt")
        noted = _noted_choice(prepared)
        choosing = noted is None
        summary = (
            _choose_and_fit(prepared, tracker, start_ray, say, lock) if choosing else {"by_steps": noted}
        )
        steps = summary.pop("by_steps", None)
        if steps is not None:
            start_ray()
            return summary | by_steps.fit(_prepared_by_steps(prepared, steps), lock=lock, tracker=tracker)
    return summary | {"seconds": round(time.monotonic() - started_s, 1)}


def _choose_and_fit(
    prepared: Prepared,
    tracker: Tracker,
    start_ray: Callable[[], None],
    say: Callable[[str], None],
    lock: OutputLock | None,
) -> dict[str, Any]:
    request, settings = prepared.request, prepared.request.recipe.selection
    assert settings is not None
    base = _encoder(prepared)
    given, others, features_s = _features(prepared, base, start_ray)
    started_s, probe = time.monotonic(), ProbeSettings(settings.probe_epochs, seed=request.recipe.seed)
    folds = _folds(given, settings, request.recipe.seed)
    found = list(_frozen_candidates(given, folds, settings, probe, base.model))
    frozen_s = time.monotonic() - started_s
    pixels = PixelCandidates(prepared, given.task, (given.table, given.about), folds.first, start_ray)
    trained = list(pixels.candidates())
    choice = choose([*found, *trained], given.task, folds, seed=request.recipe.seed)
    choice.warnings.extend(_leaks(prepared.table))
    summary = log_choice(choice, given.task, tracker)
    for line in table_lines(choice, given.task):
        say(line)
    if lock is not None:
        lock.check()
    write_out_of_fold(out_of_fold(choice, given.task, given.about), prepared, tracker)
    summary |= {
        "clips": len(given.task),
        "failed_videos": given.lost,
        "features_s": round(features_s, 1),
        "frozen_s": round(frozen_s, 1),
        "pixels_s": round(sum(candidate.seconds for candidate in trained), 1),
    }
    if choice.chosen.family in pixels.families:
        steps = pixels.recipe_of(choice.chosen)
        noted = {"recipe": steps.model_dump(mode="json"), "family": choice.chosen.family}
        _note_choice(prepared, noted)
        return {**summary, "by_steps": noted}
    started_s = time.monotonic()
    fitted = fit_chosen(choice.chosen, given.frames, given.task, base.model, probe)
    if others is not None:
        summary |= _on_validation(fitted, others, tracker)
    notes = {
        "selection": {
            "candidate": choice.chosen.name,
            "strength": choice.chosen.strength,
            "table": choice.rows(given.task),
        },
        "recall": _recall(choice, given.task),
    }
    published = publish_model(fitted.model, prepared, tracker, notes)
    return {**published, **summary, "refit_s": round(time.monotonic() - started_s, 1)}


# ---- features


def _encoder(prepared: Prepared) -> ModelBundle:
    """The frames' encoder, as the run began with it."""
    request = prepared.request
    return ModelBundle.load(storage.join(request.out, INITIAL, MODEL_FILE), options=request.out_options)


def _features(
    prepared: Prepared, base: ModelBundle, start_ray: Callable[[], None]
) -> tuple[Given, Given | None, float]:
    """Features of the training rows, and of those of validation; what was there is not made again."""
    started_s = time.monotonic()
    request, recipe = prepared.request, prepared.request.recipe
    spec = FeatureSpec.of(base.model, prepared.spec)
    splits = ("train", *([recipe.evaluation.split] if prepared.validation else []))
    columns = tuple(recipe.head_columns.values())
    wanted = Wanted(prepared.manifest, request.features, request.options, columns, splits, request.limits)
    wanted.compute(base, spec, start_ray, recipe.decode_workers, recipe.max_error_rate)
    table = wanted.read(spec)
    given = given_features(table, prepared.examples, multilabel=recipe.multilabel)
    others = None
    if prepared.validation:
        others = given_features(table, prepared.validation, multilabel=recipe.multilabel)
    if len(np.unique(given.task.strata())) < 2:
        raise UserError(
            f"features could be had of {len(given.task)} clips, of one class: nothing to tell apart"
        )
    return given, others, time.monotonic() - started_s


# ---- candidates


def _folds(given: Given, settings: SelectionSettings, seed: int) -> Folds:
    videos = videos_of(given.about)
    return make_folds(given.task, videos, folds=settings.folds, repeats=settings.repeats, seed=seed)


def _frozen_candidates(
    given: Given, folds: Folds, settings: SelectionSettings, probe: ProbeSettings, base: ViViT
) -> Iterator[Candidate]:
    search = Search(settings.strengths, settings.temporal_layers, probe)
    yield from linear_candidates(given.frames, given.task, folds, search, base.config)
    if settings.probe_epochs:
        yield from probe_candidates(given.frames, given.task, folds, search, base.config)


def _leaks(manifest: pa.Table) -> list[str]:
    rows = select(manifest)
    return leaking_groups(rows["split"].to_pylist(), rows["group"].to_pylist())


def _recall(choice: Choice, task: Task) -> dict[str, float | None]:
    """Share of each class that the chosen head found in clips it never saw, first repeat, first head."""
    if task.multilabel:
        return {}
    head, where = next(iter(task.columns().items()))
    names, truth = task.labels[head], task.targets[head]
    right = choice.chosen.logits[0][:, where].argmax(1) == truth
    return {
        name: float(right[truth == i].mean()) if (truth == i).any() else None for i, name in enumerate(names)
    }


def _on_validation(fitted: Fitted, others: Given, tracker: Tracker) -> dict[str, float]:
    """Scores of the finished model on the validation split, from its features."""
    score = float(others.task.scores(fitted.logits(others.frames)).mean())
    tracker.log_metrics({f"val/{others.task.measure}": score})
    return {f"val_{others.task.measure}": score}


# ---- a candidate that trains by steps


def _note_choice(prepared: Prepared, choice: dict[str, Any]) -> None:
    """So that a resume goes on with the training and does not choose again."""
    place = storage.join(prepared.request.out, CHOICE)
    storage.write_bytes(place, json.dumps(choice, indent=1).encode(), prepared.request.out_options)


def _noted_choice(prepared: Prepared) -> dict[str, Any] | None:
    place = storage.join(prepared.request.out, CHOICE)
    try:
        found = json.loads(storage.read_bytes(place, prepared.request.out_options))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _prepared_by_steps(prepared: Prepared, choice: dict[str, Any]) -> Prepared:
    from tubelet.training.few.pixels import prepared_by_steps

    return prepared_by_steps(prepared, Recipe.model_validate(choice["recipe"]), choice["family"])


# ---- words


def table_lines(choice: Choice, task: Task) -> Iterator[str]:
    """The table of candidates and what to think of it, for a terminal."""
    width = max(len(candidate.name) for candidate in choice.candidates)
    for row in choice.rows(task):
        mark = "*" if row["chosen"] else " "
        within = f"({row['low']:.3f} to {row['high']:.3f})"
        yield (
            f"{mark} {row['candidate']:{width}}  {row[task.measure]:.3f} {within}"
            f"  {row['folds']:3} folds {row['seconds']:7.1f} s"
        )
    low, high = choice.corrected.interval
    yield (
        f"chosen by cross-validation on the training split: {choice.chosen.name}; the choice itself is worth "
        f"{task.measure} {choice.corrected.mean:.3f} ({low:.3f} to {high:.3f})"
    )
    for line in choice.warnings:
        yield f"warning: {line}"

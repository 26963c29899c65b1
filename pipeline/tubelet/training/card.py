"""What a registered version says of itself: where it comes from, how good it is, where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tubelet.training.prepare import Prepared
from tubelet.vivit.licence import licence_of

# Classes of fewer training videos are named as such, up to so many.
_FEW, _NAMED = 20, 20


def model_card(prepared: Prepared, notes: Mapping[str, Any]) -> str:
    """The card of a model of this run, in Markdown.

    Args:
        prepared: the run.
        notes: what the model's file says of itself: the scores of its validation, or the choice it was.
    """
    return "\n".join([*_data(prepared), *_recipe(prepared), *_figures(notes), *_limits(prepared)]) + "\n"


def _data(prepared: Prepared) -> Iterator[str]:
    examples = prepared.examples
    yield "## Data\n"
    yield f"- manifest {prepared.manifest}, fingerprint `{examples.fingerprint}`"
    sizes = ", ".join(f"{name} {count}" for name, count in prepared.split_sizes().items())
    yield f"- labelled videos per split: {sizes}; trained on {len(examples)}"
    for head, names in examples.labels.items():
        yield f"- {len(names)} classes of `{head}`: {_some(names)}"


def _recipe(prepared: Prepared) -> Iterator[str]:
    request, recipe = prepared.request, prepared.request.recipe
    yield "\n## Recipe\n"
    name = f"`{request.recipe_name}`, " if request.recipe_name else ""
    yield f"- {name}model `{recipe.model}` ({prepared.config.variant}), clips {prepared.spec.sampling}"
    if recipe.selection is None:
        optimiser = recipe.optimiser
        yield f"- {prepared.total_steps} steps of {recipe.batch} clips, {optimiser.name}, lr {optimiser.lr:g}"
    else:
        yield "- a head on frozen features, chosen by cross-validation on the training split"
    if request.init:
        yield f"- starts from `{request.init}`, whose licence is {licence_of(request.init)}"
    else:
        yield "- from scratch: no weights of others"
    yield "- the whole recipe is `recipe.yaml` of the run"


def _figures(notes: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Figures\n"
    validation: Mapping[str, Any] = notes.get("validation") or {}
    choice: Mapping[str, Any] = notes.get("selection") or {}
    recall: Mapping[str, float | None] = notes.get("recall") or validation.get("recall") or {}
    if validation.get("scores"):
        yield "Validation: " + ", ".join(f"{k} {v:.3f}" for k, v in validation["scores"].items())
    elif choice:
        unseen = " Recall of clips that the head was not fitted on:" if recall else ""
        yield f"Chosen: {choice['candidate']}.{unseen}"
    else:
        yield "Not validated: `tubelet evaluate` adds figures here."
    if recall:
        yield "\n| class | recall |\n| --- | --- |"
        for name, value in recall.items():
            yield f"| {name} | {'no video' if value is None else f'{value:.3f}'} |"


def _limits(prepared: Prepared) -> Iterator[str]:
    spec = prepared.spec
    few = [f"{name} ({n})" for name, n in _videos_by_class(prepared).items() if n < _FEW]
    yield "\n## Limits\n"
    yield f"- it sees {spec.frames} frames of {spec.size} x {spec.size} pixels per clip, and hears nothing"
    yield "- a video of none of its classes gets one of them all the same: look at the scores"
    yield "- the figures hold for videos like those of the manifest, not for other cameras or places"
    if few:
        yield f"- learnt from under {_FEW} videos: {_some(few)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


def _videos_by_class(prepared: Prepared) -> dict[str, int]:
    """Training videos of each class of the first head."""
    examples = prepared.examples
    head, names = next(iter(examples.labels.items()))
    targets = examples.targets[head]
    counts = targets.sum(0) if targets.ndim > 1 else np.bincount(targets, minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))

"""``tubelet train``: fine-tune a ViViT on the labelled videos of a manifest."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Annotated

from tubelet.config import Option
from tubelet.training.request import Request, TrainSettings

from tubelet_jobs.common import DryRunOption, RayOptions, connect_ray, print_summary, say
from tubelet_jobs.recipes import load_recipe
from tubelet_jobs.stopping import StoppedError


class NamedRecipe(TrainSettings):
    """A training run whose recipe is named, with overrides."""

    recipe: Annotated[str | None, Option(metavar="NAME|FILE")] = None
    """Name of a recipe, or a YAML file (default: tiny; with --init and few labels: frozen)."""
    overrides: Annotated[tuple[str, ...], Option(argument=True, metavar="key=value")] = ()
    """Settings of the recipe, such as max_steps=200."""

    def request(self) -> Request:
        """The request with the recipe read.

        Raises:
            UserError: no such recipe, or a setting that it refuses.
        """
        settings = {name: getattr(self, name) for name in TrainSettings.model_fields}
        name = self.recipe or self._default()
        recipe = load_recipe(name, self.overrides)
        scratch = load_recipe("tiny") if recipe.selection is not None else None
        return Request(recipe=recipe, recipe_name=Path(name).stem, scratch=scratch, **settings)

    def _default(self) -> str:
        """The recipe of a run that names none: one that fits few labels where there are weights to freeze."""
        from tubelet.training.default import few_labels
        from tubelet.training.prepare import read_record

        record = read_record(self.out, self.out_options) if self.resume else None
        if record is not None:
            return "frozen" if record["recipe"].get("selection") else "tiny"
        if self.init is None:
            return "tiny"
        frozen = load_recipe("frozen", self.overrides)
        found = few_labels(frozen, self)
        if found is None:
            return "tiny"
        say(found)
        return "frozen"


class TrainOptions(DryRunOption, RayOptions, NamedRecipe):
    """The command line of a training run."""


def command(config: TrainOptions) -> None:
    """Fine-tune a ViViT on the labelled videos of a manifest.

    Example: tubelet train --recipe tiny --manifest s3://bucket/manifest --out s3://bucket/run1 max_steps=200

    The output holds model.safetensors, written last, and checkpoints/step-…/ on the way there. A run that was
    interrupted goes on where its newest checkpoint is: the same command with --resume. With --init and under
    2000 labelled clips (few=2000) the recipe is frozen: a head on frozen features, cross-validated.
    """
    from tubelet.storage.lock import OutputLock
    from tubelet.tracking import Tracker
    from tubelet.training.prepare import leaves_no_false_start, prepare

    prepared = prepare(config.request())
    say(prepared.plan_text())
    Tracker.check(config.tracking_uri, config.experiment)
    if config.dry_run:
        steps = 0 if prepared.request.recipe.selection else prepared.total_steps
        print_summary({"dry_run": True, "steps": steps, "videos": len(prepared.examples)})
        return
    lock = OutputLock(config.out, job="tubelet train", options=config.options)
    with lock, leaves_no_false_start(prepared):
        from tubelet.training import fit as fit_module
        from tubelet.training.build import initial_model

        report = initial_model(prepared)
        if report:
            say(report)
        try:
            if prepared.request.recipe.selection is not None:
                from tubelet.training.few.job import fit_few

                summary = fit_few(prepared, report, partial(_start_ray, config), say, lock)
            else:
                _start_ray(config)
                summary = fit_module.fit(prepared, report, lock)
        except fit_module.StoppedError as stop:
            raise StoppedError(signal.Signals[stop.reason], str(stop)) from None
    print_summary(summary)


def _start_ray(config: TrainOptions) -> None:
    # Logical CPUs: fewer than four cannot hold ranks, planning and decoding at once.
    connect_ray(config.ray_address, num_cpus=max(4, os.cpu_count() or 1))

"""``tubelet train``: fine-tune a ViViT on the labelled videos of a manifest."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tubelet_jobs.common import Anonymous, DryRun, RayAddress, TrackingUri, connect_ray, print_summary, say


def command(  # noqa: PLR0917 - typer reads them as options
    manifest: Annotated[str, typer.Option("--manifest", help="Manifest made by `tubelet index`.")],
    out: Annotated[str, typer.Option("--out", help="Where checkpoints and the model go.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Name of a recipe, or a YAML file.")] = "tiny",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
    init: Annotated[str | None, typer.Option("--init", help="Weights to start from.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on at the newest checkpoint in --out.")
    ] = False,
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "tubelet",
    ray_address: RayAddress = None,
    tracking_uri: TrackingUri = None,
    anonymous: Anonymous = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a ViViT on the labelled videos of a manifest.

    Example: tubelet train --recipe tiny --manifest s3://bucket/manifest --out s3://bucket/run1 max_steps=200

    The output holds model.safetensors, written last, and checkpoints/step-…/ on the way there. A run that was
    interrupted goes on where its newest checkpoint is: the same command with --resume.
    """
    from tubelet.storage import StorageOptions
    from tubelet.storage.lock import OutputLock
    from tubelet.training.prepare import Request, prepare

    from tubelet_jobs.recipes import load_recipe

    request = Request(
        recipe=load_recipe(recipe, overrides or ()),
        manifest=manifest,
        out=out,
        init=init,
        resume=resume,
        tracking_uri=tracking_uri,
        experiment=experiment,
        options=StorageOptions(anonymous=anonymous),
    )
    prepared = prepare(request)
    say(prepared.plan_text())
    if dry_run:
        print_summary({"dry_run": True, "steps": prepared.total_steps, "videos": len(prepared.examples)})
        return
    with OutputLock(out, job="tubelet train", options=request.options):
        from tubelet.training.build import initial_model
        from tubelet.training.fit import StoppedError, fit

        report = initial_model(prepared)
        if report:
            say(report)
        # Logical CPUs: fewer than four cannot hold ranks, planning and decoding at once.
        connect_ray(ray_address, num_cpus=max(4, os.cpu_count() or 1))
        try:
            summary = fit(prepared, report)
        except StoppedError as stop:
            say(str(stop))
            raise typer.Exit(128 + 15) from None
    print_summary(summary)

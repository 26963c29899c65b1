"""``tubelet evaluate``: how good a model is on the labelled videos of a split."""

from __future__ import annotations

from typing import Annotated

import typer
from tubelet.config import load_settings

from tubelet_jobs.common import (
    Anonymous,
    DryRun,
    RayAddress,
    TrackingUri,
    connect_ray,
    print_summary,
    review_page,
    say,
)


def command(  # noqa: PLR0917 - typer reads them as options
    model: Annotated[str, typer.Option("--model", help="train --out, models:/NAME@ALIAS or runs:/ID.")],
    manifest: Annotated[str, typer.Option("--manifest", help="Manifest made by `tubelet index`.")],
    split: Annotated[str, typer.Option("--split", help="Which videos.")] = "test",
    views: Annotated[str, typer.Option("--views", help="Temporal clips x spatial crops.")] = "4x3",
    out: Annotated[str | None, typer.Option("--out", help="Folder for tables and figures.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Views in one forward pass.")] = 8,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Decode workers.")] = None,
    max_error_rate: Annotated[float, typer.Option(help="Share of videos that may fail.")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
    ablate: Annotated[
        str,
        typer.Option(
            "--ablate", metavar="none|shuffle|one-frame", help="Frames in a random order, or one only."
        ),
    ] = "none",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "tubelet",
    ray_address: RayAddress = None,
    tracking_uri: TrackingUri = None,
    anonymous: Anonymous = False,
    dry_run: DryRun = False,
) -> None:
    """Measure a model on the labelled videos of a split: top-1, top-5, classes, calibration.

    Each video is cut into several views whose logits are averaged, as in the ViViT paper. Videos that cannot
    be decoded are counted, and left out of the measures. --out gets metrics.json, tables, figures, a
    predictions table and a page of the worst mistakes. --ablate tells how much the model lives on motion:
    what is left when each clip's frames are shuffled, or one of them stands still.

    Example: tubelet evaluate --model s3://bucket/run1 --manifest s3://bucket/manifest --views 4x3
    """
    from tubelet.evaluation.job import EvaluateConfig, EvaluateJob
    from tubelet.evaluation.output import lines

    given = {
        "model": model,
        "manifest": manifest,
        "split": split,
        "views": views,
        "out": out,
        "batch": batch,
        "workers": workers,
        "max_error_rate": max_error_rate,
        "seed": seed,
        "ablate": ablate,
        "experiment": experiment,
        "tracking_uri": tracking_uri,
        "anonymous": anonymous,
    }
    job = EvaluateJob(load_settings(EvaluateConfig, given))
    say(job.describe())
    if dry_run:
        print_summary({"dry_run": True, "objects": job.objects})
        return
    evaluation, summary = job.run(lambda: connect_ray(ray_address), review_page(anonymous=anonymous))
    for line in lines(evaluation):
        say(line)
    print_summary(summary)

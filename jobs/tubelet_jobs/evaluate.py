"""``tubelet evaluate``: how good a model is on the labelled videos of a split."""

from __future__ import annotations

from tubelet.evaluation.config import EvaluateConfig
from tubelet.tracking import Tracker

from tubelet_jobs.common import (
    DryRunOption,
    RayOptions,
    connect_ray,
    print_summary,
    review_page,
    say,
)


class EvaluateOptions(DryRunOption, RayOptions, EvaluateConfig):
    """The command line of an evaluation."""


def command(config: EvaluateOptions) -> None:
    """Measure a model on the labelled videos of a split: top-1, top-5, classes, calibration.

    Each video is cut into several views whose logits are averaged, as in the ViViT paper. Videos that cannot
    be decoded are counted, and left out of the measures. --out gets metrics.json, tables, figures, a
    predictions table and a page of the worst mistakes. --ablate tells how much the model lives on motion:
    what is left when each clip's frames are shuffled, or one of them stands still.

    --learning-curve does not look at the split: heads on frozen features are fitted on 5, 10, 20, 50 … labels
    per class of the training split, and scored on groups of it that they were not fitted on.

    Example: tubelet evaluate --model s3://bucket/run1 --manifest s3://bucket/manifest --views 4x3
    """
    if config.learning_curve:
        _learning_curve(config)
        return
    from tubelet.evaluation.job import EvaluateJob
    from tubelet.evaluation.output import lines

    job = EvaluateJob(config)
    say(job.describe())
    if config.dry_run:
        Tracker.check(config.tracking_uri, config.experiment)
        print_summary({"dry_run": True, "objects": job.objects})
        return
    # The table that the page is made of is kept nowhere, so it says whose mistakes these are.
    title = f"Worst mistakes: {config.model} on {config.split} of {config.manifest}"
    page = review_page(anonymous=config.anonymous, title=title, whole_uris=True)
    evaluation, summary = job.run(lambda: connect_ray(config.ray_address), page)
    for line in lines(evaluation):
        say(line)
    print_summary(summary)


def _learning_curve(config: EvaluateOptions) -> None:
    from tubelet.training.few.curve_job import CurveJob, lines

    job = CurveJob(config)
    say(job.describe())
    if config.dry_run:
        Tracker.check(config.tracking_uri, config.experiment)
        print_summary({"dry_run": True, "objects": job.objects})
        return
    curve, summary = job.run(lambda: connect_ray(config.ray_address))
    for line in lines(curve):
        say(line)
    print_summary(summary)

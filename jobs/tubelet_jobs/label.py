"""``tubelet label``: every object of a bucket labelled exactly once."""

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


def command(  # noqa: PLR0917 - typer calls it by name
    source: Annotated[
        str, typer.Argument(metavar="SRC|MANIFEST|FILE", help="Bucket or folder, its manifest, or one video.")
    ],
    model: Annotated[list[str], typer.Option("--model", help="MODEL to label with; may be repeated.")],
    out: Annotated[str, typer.Option("--out", help="Where the predictions go (a Parquet dataset).")],
    include: Annotated[str | None, typer.Option(help="Only paths that match this glob.")] = None,
    topk: Annotated[int, typer.Option(help="Labels a row holds, the best first.")] = 5,
    scores: Annotated[bool, typer.Option("--scores", help="Keep the scores of all classes.")] = False,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Keep the pooled features.")] = False,
    embeddings_type: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    views: Annotated[str, typer.Option(help="Views in time x space, their logits averaged.")] = "1x1",
    window: Annotated[
        str | None, typer.Option(help="A row for each window of this length, such as 2s.")
    ] = None,
    stride: Annotated[str | None, typer.Option(help="Time between windows (default: their length).")] = None,
    max_error_rate: Annotated[float, typer.Option(help="End when more of the last thousand failed.")] = 0.2,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Try former errors again.")] = False,
    new_version: Annotated[
        bool, typer.Option("--new-version", help="Move rows of another model or sampling under _versions/.")
    ] = False,
    export: Annotated[
        str | None, typer.Option(help="Also write all rows to this .jsonl or .csv file.")
    ] = None,
    review_limit: Annotated[
        int, typer.Option(help="Most videos on the review page that is made at the end; 0 for no page.")
    ] = 100,
    workers: Annotated[int | None, typer.Option(help="Decode workers (default: one per CPU).")] = None,
    predictors: Annotated[
        int | None, typer.Option(help="Predictors apart from the decode workers (default: one per GPU).")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs of each predictor, such as 0.5; 0 for none.")
    ] = None,
    ray_address: RayAddress = None,
    tracking_uri: TrackingUri = None,
    anonymous: Anonymous = False,
    single_writer: Annotated[
        bool,
        typer.Option("--single-writer", help="Write to a store that cannot hold a lock."),
    ] = False,
    break_lock: Annotated[
        bool, typer.Option("--break-lock", help="Take OUT over from a job that cannot be running any more.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Label every video under SRC, one row per object, in OUT/*.parquet.

    Broken videos become rows with status=error and a reason. Stop it whenever you like: the same command goes
    on where it was, labels what is new or changed since, and does nothing when all is done.

    Example: tubelet label s3://bucket/ --model models:/m@best --out s3://labels/
    """
    from tubelet.labelling.config import LabelConfig
    from tubelet.labelling.job import LabelJob
    from tubelet.labelling.windows import Windows

    config = load_settings(
        LabelConfig,
        {
            "source": source,
            "models": tuple(model),
            "out": out,
            "include": include,
            "topk": topk,
            "scores": scores,
            "embeddings": embeddings_type if embeddings else None,
            "views": views,
            "windows": Windows.parse(window, stride),
            "max_error_rate": max_error_rate,
            "retry_errors": retry_errors,
            "new_version": new_version,
            "export": export,
            "review_limit": review_limit,
            "workers": workers,
            "predictors": predictors,
            "gpus": gpus,
            "anonymous": anonymous,
            "single_writer": single_writer,
            "break_lock": break_lock,
            "tracking_uri": tracking_uri,
        },
    )
    job = LabelJob(config)
    if dry_run:
        say(job.describe())
        return
    page = review_page(limit=review_limit, workers=workers, anonymous=anonymous) if review_limit else None
    summary = job.run(lambda: connect_ray(ray_address), page)
    if not summary.labelled:
        say(f"nothing to do: all {summary.objects} objects are labelled in {summary.out}")
    print_summary(summary.to_dict())

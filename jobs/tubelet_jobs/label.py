"""``tubelet label``: every object of a bucket labelled exactly once."""

from __future__ import annotations

from typing import Annotated

from tubelet.config import Option, load_settings
from tubelet.inference.schema import EmbeddingType
from tubelet.inference.windows import Windows
from tubelet.labelling.config import LabelConfig
from tubelet.tracking import Tracker

from tubelet_jobs.common import (
    DryRunOption,
    RayOptions,
    connect_ray,
    connect_while_importing,
    print_summary,
    review_page,
    say,
)


class LabelRequest(LabelConfig):
    """A labelling job as the command line names it: embeddings and windows in options of two parts."""

    with_embeddings: Annotated[bool, Option(flag="--embeddings")] = False
    """Keep the pooled features."""
    embeddings_type: Annotated[EmbeddingType, Option()] = "float16"
    """Type of their values."""
    window: Annotated[str | None, Option(metavar="SECONDS")] = None
    """A row for each window of this length, such as 2s."""
    stride: Annotated[str | None, Option(metavar="SECONDS")] = None
    """Time between windows (default: their length)."""

    def config(self) -> LabelConfig:
        """The job's own settings.

        Raises:
            UserError: a window or a stride that is no duration.
        """
        given = {name: getattr(self, name) for name in LabelConfig.model_fields}
        given["windows"] = Windows.parse(self.window, self.stride)
        given["embeddings"] = self.embeddings_type if self.with_embeddings else None
        return load_settings(LabelConfig, given)


class LabelOptions(DryRunOption, RayOptions, LabelRequest):
    """The command line of a labelling job."""


def command(options: LabelOptions) -> None:
    """Label every video under SRC, one row per object, in OUT/*.parquet.

    Broken videos become rows with status=error and a reason. Stop it whenever you like: the same command goes
    on where it was, labels what is new or changed since, and does nothing when all is done.

    One local FILE, or a folder of at most four, is labelled in this process, in seconds and without Ray; FILE
    also without a run in MLflow unless a server is named.

    Example: tubelet label s3://bucket/ --model models:/m@best --out s3://labels/
    """
    config = options.config()
    if not options.dry_run and (options.ray_address or config.is_certain_of_ray()):
        # What has to be indexed first is looked into on a cluster, too.
        connect_while_importing("tubelet.labelling.job", options.ray_address)
    from tubelet.labelling.job import LabelJob

    job = LabelJob(config, on_cluster=bool(options.ray_address))
    if options.dry_run:
        say(job.describe())
        Tracker.check(config.tracking_uri, config.experiment)
        print_summary({"dry_run": True, "source": config.source, "out": job.out})
        return
    page = None
    if config.review_limit:
        page = review_page(
            limit=config.review_limit,
            workers=config.workers,
            anonymous=config.storage.anonymous,
            just_written=True,
        )
    summary = job.run(lambda: connect_ray(options.ray_address), page)
    if not summary.labelled:
        say(f"nothing to do: all {summary.objects} objects are labelled in {summary.out}")
    print_summary(summary.to_dict())

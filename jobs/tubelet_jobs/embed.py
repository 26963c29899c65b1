"""``tubelet embed``: what a model makes of each video of a bucket, as a table."""

from __future__ import annotations

from tubelet.inference.embedding import EmbedConfig

from tubelet_jobs.common import DryRunOption, RayOptions, connect_ray, print_summary, say


class EmbedOptions(DryRunOption, RayOptions, EmbedConfig):
    """The command line of an embedding job."""


def command(options: EmbedOptions) -> None:
    """Embed every video under SRC, one row per video, in OUT/*.parquet.

    The embedding is the model's pooled output, a fixed-size list; pandas, DuckDB and Lance read it. Broken
    videos become rows with status=error, a reason, and NaN. The same command goes on where it was stopped,
    embeds what is new or changed since, and does nothing when all is done.

    Example: tubelet embed s3://bucket/ --model timm:vit_small_patch14_dinov2 --out s3://embeddings/
    """
    from tubelet.inference.embedding import EmbedJob

    job = EmbedJob(options)
    for note in job.notes:
        say(note)
    if options.dry_run:
        say(job.describe())
        print_summary({"dry_run": True, "source": options.source, "out": options.out})
        return
    if options.ray_address:  # so that what has to be indexed first is looked into there, too
        connect_ray(options.ray_address)
    summary = job.run(lambda: connect_ray(options.ray_address))
    if not summary.embedded:
        say(f"nothing to do: all {summary.objects} objects are embedded in {summary.out}")
    print_summary(summary.to_dict())

"""``tubelet prepare``: small training copies of the videos of a manifest."""

from __future__ import annotations

from tubelet.copies.config import PrepareConfig

from tubelet_jobs.common import DryRunOption, RayOptions, connect_ray, print_summary, say


class PrepareOptions(DryRunOption, RayOptions, PrepareConfig):
    """The command line of a preparing job."""


def command(options: PrepareOptions) -> None:
    """Copy every video small and cheap to seek in (H.264 in MP4), and write the manifest of the copies.

    Training reads videos again and again, a few frames each time: from copies at the size that it takes, it
    waits less for them. OUT is a manifest: it keeps keys, labels, splits and segments, and frames keep their
    times, so that what was made of the originals fits. Originals are only read. What cannot be copied is a
    row with status=error and a reason. The same command goes on where it was stopped, and copies what is new
    or changed since.

    Example: tubelet prepare s3://bucket/manifest --out s3://bucket/copies-256 --short-side 256
    """
    from tubelet.copies.job import PrepareJob

    job = PrepareJob(options)
    if options.dry_run:
        say(job.describe())
        return
    summary = job.run(lambda: connect_ray(options.ray_address))
    if not summary.copied and not summary.errors:
        say(f"nothing to do: all {summary.objects} videos are copied in {summary.out}")
    print_summary(summary.to_dict())

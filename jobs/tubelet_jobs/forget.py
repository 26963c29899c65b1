"""``tubelet forget``: take videos out of a manifest and of what was made of it."""

from __future__ import annotations

from tubelet.forgetting.config import ForgetConfig

from tubelet_jobs.common import DryRunOption, print_summary, say


class ForgetOptions(DryRunOption, ForgetConfig):
    """The command line of a forgetting job."""


def command(options: ForgetOptions) -> None:
    """Take videos out of a manifest and of outputs: rows, features, training copies, pages that show them.

    A mark without a name stays in the manifest, so that `index --update` does not bring them back. The
    originals are not touched, nor are models: those that were trained on the manifest are listed. Pages go
    as a whole; `tubelet review` makes them again. The same command finishes what was stopped.

    Example: tubelet forget s3://bucket/videos/p17.mp4 --manifest s3://bucket/manifest --out s3://bucket/labels
    """
    from tubelet.forgetting.job import ForgetJob

    job = ForgetJob(options)
    if options.dry_run:
        say(job.describe())
        return
    summary = job.run()
    say(
        f"{summary.forgotten} videos forgotten: {summary.rows} rows, {summary.copies} copies,"
        f" {summary.pages} pages removed; delete the originals as well, if they are to go"
    )
    for model in summary.models:
        names = ", ".join([*model["versions"], *filter(None, [model["out"]])]) or model["name"]
        say(f"was trained on this manifest: {names} (run {model['run_id']})")
    print_summary(summary.to_dict())

"""``tubelet review``: a page to look at what was labelled."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from tubelet.config import load_settings

from tubelet_jobs.common import Anonymous, DryRun, print_summary, say


def command(  # noqa: PLR0917 - typer calls it by name
    predictions: Annotated[str, typer.Argument(metavar="PREDICTIONS", help="The --out of `tubelet label`.")],
    out: Annotated[str, typer.Option("--out", help="The page, one HTML file.")],
    limit: Annotated[int, typer.Option(help="Most videos with pictures (about 20 kB each).")] = 1000,
    frames: Annotated[int, typer.Option(help="Frames of a strip.")] = 8,
    height: Annotated[int, typer.Option(help="Height of a frame in pixels.")] = 96,
    anonymous: Anonymous = False,
    dry_run: DryRun = False,
) -> None:
    """Make one self-contained HTML page: each video as a strip of frames with its label, score and top-5.

    Filter by label, sort by confidence, search; errors stand in a list of their own. The page loads nothing
    from outside.

    Example:

        tubelet review s3://labels/ --out page.html
    """
    from tubelet.review.page import ReviewConfig, review

    config = load_settings(
        ReviewConfig,
        {
            "predictions": predictions,
            "out": out,
            "limit": limit,
            "frames": frames,
            "height": height,
            "anonymous": anonymous,
        },
    )
    if dry_run:
        say(f"would write {config.out} with up to {config.limit} videos of {config.predictions}")
        return
    print_summary(dataclasses.asdict(review(config)))

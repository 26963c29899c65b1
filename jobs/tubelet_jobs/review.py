"""``tubelet review``: a page to look at what was labelled."""

from __future__ import annotations

import dataclasses

from tubelet.review.page import ReviewConfig, review

from tubelet_jobs.common import DryRunOption, print_summary, say


class ReviewOptions(DryRunOption, ReviewConfig):
    """The page, or what would be on it."""


def command(config: ReviewOptions) -> None:
    """Make one self-contained HTML page: each video as a strip of frames with its label, score and top-5.

    Filter by label, sort by confidence, search; errors stand in a list of their own. The page loads nothing
    from outside.

    Example: tubelet review s3://labels/ --out page.html
    """
    if config.dry_run:
        say(f"would write {config.out} with up to {config.limit} videos of {config.predictions}")
        return
    print_summary(dataclasses.asdict(review(config)))

"""``tubelet review``: a page to look at what was labelled, and to correct it."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, TypeVar

from pydantic import model_validator
from tubelet.config import Option, Settings
from tubelet.review.config import ReviewConfig, ServeConfig

from tubelet_jobs.common import DryRunOption, print_summary, say

S = TypeVar("S", bound=Settings)


class ReviewOptions(DryRunOption, ServeConfig, ReviewConfig):
    """The page, or what would be on it."""

    serve: Annotated[bool, Option()] = False
    """Serve the page on this machine: videos play from the store, corrections are kept as they are made."""

    @model_validator(mode="after")
    def _check(self) -> ReviewOptions:
        if self.serve and (self.out or self.presign):
            raise ValueError("--serve needs neither --out nor --presign: leave them out")
        if not self.serve and self.corrections:
            raise ValueError("--corrections goes with --serve; the page itself offers them for download")
        return self


def command(config: ReviewOptions) -> None:
    """Make an HTML page of what was labelled: each video as a strip of frames with label, score and top-5.

    Search, filter, play, and correct: accept, relabel, reject, by key. Download the corrections, or let
    --serve keep them, and give them to `tubelet index --update --labels`. The page asks for nothing but the
    video that you play.

    Example: tubelet review s3://labels/ --out page.html
    """
    if config.dry_run:
        what = "serve a page" if config.serve else f"write {config.page}"
        say(f"would {what} with up to {config.limit} videos of {config.predictions}")
        print_summary({"dry_run": True, "predictions": config.predictions, "out": config.page})
        return
    if config.serve:
        _serve(config)
        return
    from tubelet.review.page import review

    if config.presign:
        say(f"whoever has the page can read its videos for {config.presign}: do not pass it on")
    print_summary(dataclasses.asdict(review(_part(config, ReviewConfig))))


def _serve(config: ReviewOptions) -> None:
    from tubelet.review.server import serving

    with serving(_part(config, ReviewConfig), _part(config, ServeConfig)) as (server, address):
        if config.host not in ("127.0.0.1", "localhost", "::1"):
            say("others reach this page without encryption: whoever has the address sees the videos")
        # Not by say: this secret is for whoever started the server, and without it nobody sees the page.
        print(f"open {address}", file=sys.stderr, flush=True)
        say("Ctrl-C ends it; corrections are kept as they are made")
        server.serve_forever()


def _part(config: ReviewOptions, cls: type[S]) -> S:
    return cls(**{name: getattr(config, name) for name in cls.model_fields})

"""The settings of the review page; light to import, so that the command line can read its options."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from tubelet import storage
from tubelet.config import Option, Settings
from tubelet.storage import StorageOptions

# What signatures of S3 may last.
_LONGEST_LINK_S = 7 * 24 * 3600
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


Kind = Literal["uncertain", "suspects", "novel", "disagree"]


@dataclass(frozen=True)
class Queue:
    """Which rows, and how many."""

    kind: Kind
    count: int

    @classmethod
    def parse(cls, text: str) -> Queue:
        """``uncertain=200``.

        Raises:
            ValueError: no such queue, or no number.
        """
        kind, _, count = text.partition("=")
        if kind not in get_args(Kind) or not count.isdigit() or int(count) < 1:
            raise ValueError(f"write a queue and its length, such as uncertain=200; there are {_kinds()}")
        return cls(kind, int(count))  # type: ignore[arg-type]


def _kinds() -> str:
    return ", ".join(get_args(Kind))


class ReviewConfig(Settings):
    """What the page shows. Errors need no pictures and are all listed, up to 5,000."""

    predictions: Annotated[str, Option(argument=True, metavar="PREDICTIONS")]
    """The --out of `tubelet label`, or the folder predictions of `tubelet evaluate --out`."""
    other: Annotated[str | None, Option(argument=True, metavar="OTHER")] = None
    """Predictions of another run for the same videos: what changed, gains and losses."""
    out: Annotated[str | None, Option(metavar="FILE")] = None
    """The page (default: _review/page.html below PREDICTIONS); pictures of many rows lie beside it."""
    limit: Annotated[int, Option(), Field(ge=0)] = 1000
    """Most videos with pictures (about 20 kB each)."""
    frames: Annotated[int, Option(), Field(ge=1, le=32)] = 8
    """Frames of a strip."""
    height: Annotated[int, Option(), Field(ge=32, le=480)] = 96
    """Height of a frame in pixels."""
    queue: Annotated[str | None, Option(metavar="QUEUE=COUNT")] = None
    """What to look at first: uncertain=200, or suspects, novel, disagree (with OTHER)."""
    manifest: Annotated[str | None, Option()] = None
    """Show the labels of this manifest as the truth."""
    presign: Annotated[str | None, Option(metavar="TIME")] = None
    """Play videos of the store by signed links that last so long, such as 24h."""
    workers: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that decode."""
    anonymous: Annotated[bool, Option()] = False
    """Read public buckets without credentials."""

    title: str | None = None
    """Of the page (default: the name of PREDICTIONS, with where it lies)."""
    just_written: bool = False
    """A job has written the predictions, and reads them as it wrote them: with credentials."""
    whole_uris: bool = False
    """Name videos by their URIs."""

    @field_validator("presign")
    @classmethod
    def _check_presign(cls, text: str | None) -> str | None:
        if text is not None:
            lifetime_s(text)
        return text

    @field_validator("queue")
    @classmethod
    def _check_queue(cls, text: str | None) -> str | None:
        if text is not None:
            Queue.parse(text)
        return text

    @property
    def page(self) -> str:
        """URI of the page."""
        return storage.normalise_uri(self.out or storage.join(self.predictions, "_review/page.html"))

    @property
    def storage_options(self) -> StorageOptions:
        """How to read videos and manifests."""
        return StorageOptions(anonymous=self.anonymous)

    @property
    def output_options(self) -> StorageOptions:
        """How to write the page."""
        return self.storage_options.for_writing()

    @property
    def predictions_options(self) -> StorageOptions:
        """How to read predictions."""
        return self.output_options if self.just_written else self.storage_options


class ServeConfig(Settings):
    """Where the page is served, and where corrections are kept."""

    host: Annotated[str, Option()] = "127.0.0.1"
    """Address to serve at; others reach this machine by 0.0.0.0."""
    port: Annotated[int, Option(), Field(ge=0, le=65535)] = 0
    """Port to serve at (default: any that is free)."""
    corrections: Annotated[str | None, Option(metavar="FILE")] = None
    """Where corrections are kept (default: _review/corrections.csv below PREDICTIONS)."""


def lifetime_s(text: str) -> int:
    """How long signed links last, as people write it: ``24h``.

    Raises:
        ValueError: it is no such time, or longer than signatures may last.
    """
    found = re.fullmatch(r"(\d+)([smhd])", text)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 0 < seconds <= _LONGEST_LINK_S:
        raise ValueError("write how long links last, such as 24h, and at most 7d")
    return seconds

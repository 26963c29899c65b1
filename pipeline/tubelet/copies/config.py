"""What ``tubelet prepare`` makes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tubelet.config import Option, Settings
from tubelet.decode_limits import DecodeLimits
from tubelet.error_rate import MaxErrorRate
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions
from tubelet.video import CopySpec


class CopyLimits(DecodeLimits):
    """What making one copy may cost: every frame is decoded and encoded."""

    deadline_s: Annotated[float, Option(flag="--deadline", metavar="SECONDS"), Field(gt=0)] = 1800.0
    """Seconds that making a copy may take, fetching included, before it counts as an error."""


class PrepareConfig(Settings):
    """What to copy, how small, and where to."""

    source: Annotated[str, Option(argument=True, metavar="SRC|MANIFEST")]
    """Manifest, or bucket or folder."""
    out: Annotated[str, Option()]
    """Where the copies and their manifest go."""
    short_side: Annotated[int, Option(), Field(ge=16, le=4096)] = 256
    """Pixels of the shorter side; smaller videos keep their size. Take what a recipe resizes to, or more."""
    gop: Annotated[int, Option(), Field(ge=1, le=600)] = 12
    """Frames of a group, of which decoding any one may need all before it."""
    crf: Annotated[int, Option(), Field(ge=0, le=51)] = 23
    """Quality: x264's constant rate factor, smaller is better."""
    segments: Annotated[bool, Option()] = False
    """Make each labelled segment of a video a file of its own."""
    include: Annotated[str | None, Option(metavar="GLOB")] = None
    """Only paths that match this glob."""
    max_error_rate: Annotated[MaxErrorRate, Option()] = 0.2
    """End when more of the last thousand failed."""
    retry_errors: Annotated[bool, Option()] = False
    """Try former errors again."""
    workers: Annotated[int | None, Option(), Field(ge=1)] = None
    """Videos copied at once (default: one per CPU)."""
    limits: CopyLimits = CopyLimits()
    """What one video may cost."""
    storage: StorageOptions = DEFAULT_OPTIONS
    """How to reach the stores."""

    @property
    def spec(self) -> CopySpec:
        """What copies are like."""
        return CopySpec(self.short_side, self.gop, self.crf)

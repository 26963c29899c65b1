"""Windows over long videos."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from tubelet.config import Settings, UserError, load_settings

# A duration is a sum of frame times; a window must not appear for a rounding error.
_EPSILON_S = 1e-6


class Windows(Settings):
    """Windows of ``window_s`` seconds, one every ``stride_s`` seconds."""

    window_s: Annotated[float, Field(gt=0)]
    stride_s: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _check(self) -> Windows:
        if self.stride_s > self.window_s:
            raise ValueError(
                "the stride is longer than the window, so some of the video would be in none: lower --stride"
            )
        return self

    @classmethod
    def parse(cls, window: str | None, stride: str | None) -> Windows | None:
        """Windows from two durations as people write them; None where none are asked for.

        Raises:
            UserError: no durations, a stride without a window, or one that is longer.
        """
        if window is None:
            if stride is not None:
                raise UserError("--stride needs --window: for example --window 2s --stride 1s")
            return None
        try:
            given = {"window_s": seconds(window), "stride_s": seconds(stride or window)}
        except ValueError as error:
            raise UserError(f"--window/--stride: {error} is no duration; write 2s, 500ms or 1.5") from error
        return load_settings(cls, given)

    def of(self, duration_s: float) -> list[tuple[float, float]]:
        """``(start_s, end_s)`` of each window, at least one; together they cover ``[0, duration_s]``."""
        count = 1 + max(0, math.ceil((duration_s - self.window_s) / self.stride_s - _EPSILON_S))
        starts = [i * self.stride_s for i in range(count)]
        return [(start_s, min(start_s + self.window_s, max(duration_s, _EPSILON_S))) for start_s in starts]

    def __str__(self) -> str:
        return f"window={self.window_s:g}s/{self.stride_s:g}s"


def seconds(text: str) -> float:
    """``2``, ``2s``, ``500ms``, ``1.5m`` as seconds.

    Raises:
        ValueError: it is none of these.
    """
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("", 1.0)):
        if text.endswith(unit):
            return float(text[: len(text) - len(unit)]) * factor
    raise ValueError(text)

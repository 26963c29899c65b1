"""Windows over long videos, and the intervals that windows of one label merge into."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
from pydantic import Field, model_validator

from tubelet.config import Settings, UserError, load_settings
from tubelet.video import Status

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


@dataclass(frozen=True)
class Interval:
    """A stretch of one video in which neighbouring windows have one label. ``score`` is their mean."""

    key: str
    uri: str
    label: str
    start_s: float
    end_s: float
    score: float
    windows: int


INTERVAL_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("score", pa.float32()),
        ("windows", pa.int32()),
    ]
)

INTERVAL_COLUMNS = ["key", "uri", "window", "start_s", "end_s", "label", "score", "status"]


def merge_windows(rows: Sequence[dict[str, object]]) -> Iterator[Interval]:
    """Intervals of one video from its rows (``window, start_s, end_s, label, score, status``), in order.

    Where two neighbouring windows differ, the border is halfway between their centres: a window takes the
    label of what fills most of it, so the true border lies within half a stride of that. Failed windows
    belong to no interval.
    """
    ordered = sorted(rows, key=lambda row: int(str(row["window"])))
    centres = [(float(str(r["start_s"])) + float(str(r["end_s"]))) / 2 for r in ordered]
    first = 0
    for i in range(1, len(ordered) + 1):
        if (
            i < len(ordered)
            and ordered[i]["label"] == ordered[first]["label"]
            and _ok(ordered[i]) == _ok(ordered[first])
        ):
            continue
        if _ok(ordered[first]):
            run = ordered[first:i]
            start_s = (centres[first - 1] + centres[first]) / 2 if first else float(str(run[0]["start_s"]))
            end_s = (centres[i - 1] + centres[i]) / 2 if i < len(ordered) else float(str(run[-1]["end_s"]))
            score = sum(float(str(row["score"])) for row in run) / len(run)
            label = str(run[0]["label"])
            yield Interval(str(run[0]["key"]), str(run[0]["uri"]), label, start_s, end_s, score, len(run))
        first = i


def _ok(row: dict[str, object]) -> bool:
    return row["status"] == Status.OK


def intervals_table(parts: Iterable[pa.Table]) -> pa.Table:
    """Merged intervals of all videos in ``parts``, ordered by key and time."""
    by_key: dict[str, list[dict[str, object]]] = {}
    for part in parts:
        for row in part.select(INTERVAL_COLUMNS).to_pylist():
            by_key.setdefault(row["key"], []).append(row)
    found = [vars(interval) for key in sorted(by_key) for interval in merge_windows(by_key[key])]
    return pa.Table.from_pylist(found, schema=INTERVAL_SCHEMA)

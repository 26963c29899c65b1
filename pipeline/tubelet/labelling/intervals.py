"""The intervals that neighbouring windows of one label merge into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tubelet.video import Status


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

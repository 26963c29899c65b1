"""From one object, as it was listed and probed, to its rows in the manifest: the whole, and its segments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from tubelet.corpus.known_rows import same_time
from tubelet.corpus.label_source import Segment
from tubelet.video import Status

Row = dict[str, Any]
Heads = Mapping[str, bool]
"""The label columns, and whether each is multi-label."""


def packed(segments: Sequence[Segment]) -> str | None:
    """Segments as one cell of a table; None for none."""
    if not segments:
        return None
    return json.dumps([asdict(segment) for segment in segments], default=datetime.isoformat)


def unpacked(cell: str | None) -> list[Row]:
    """What :func:`packed` made a cell of."""
    found: list[Row] = [] if cell is None else json.loads(cell)
    for one in found:
        at = one["corrected_at"]
        one["corrected_at"] = None if at is None else datetime.fromisoformat(at)
    return found


def merge_earlier(row: Row, earlier: Sequence[Row], heads: Heads, *, keep_split: bool = False) -> None:
    """Take over from the rows before what the labels do not name.

    Args:
        row: the object as listed, with its ``segments`` packed; changed in place.
        earlier: its rows in the manifest before, the gone ones too.
        heads: the label columns.
        keep_split: the split is the one before.
    """
    whole = next((one for one in earlier if not is_part(one)), None)
    if whole is not None:
        _take_over(row, whole, heads)
    if earlier and (keep_split or row["split"] is None):
        row["split"], row["group"] = earlier[0]["split"], earlier[0]["group"]
    row["earlier_parts"] = [one for one in earlier if is_part(one)]


def is_part(row: Row) -> bool:
    """Whether a row is about a segment, and not the whole."""
    return bool(row["segment"]) or row["clip_start_s"] is not None or row["clip_end_s"] is not None


def rows_of(row: Row, heads: Heads) -> Iterator[Row]:
    """The rows of one object.

    Segments that were there before keep their numbers, which name predictions; no number is used again.
    """
    parts = _parts(row, heads)
    live = [part for part in parts if part["status"] != Status.GONE]
    labelled = row["corrected_at"] is not None or any(row[head] for head in heads)
    if not live or labelled:
        yield row
    yield from parts


def _parts(row: Row, heads: Heads) -> list[Row]:
    earlier: list[Row] = list(row.pop("earlier_parts", ()))
    given = _in_seconds(unpacked(row.pop("segments", None)), row.get("fps"))
    if row["status"] == Status.NOT_VIDEO:
        return []
    # Corrections add to the parts there are; a label file names them all.
    renamed = any(one["corrected_at"] is None for one in given)
    found: list[Row] = []
    number = max((one["segment"] for one in earlier), default=0)
    for segment in given:
        before = next((one for one in earlier if _covers(one, segment)), None)
        values = {head: segment["values"].get(head) for head in heads}
        part = row | values | {name: segment[name] for name in ("clip_start_s", "clip_end_s", "corrected_at")}
        if before is None:
            number += 1
            part["segment"] = number
        else:
            earlier.remove(before)
            part["segment"] = before["segment"]
            _take_over(part, before, heads)
        found.append(part)
    for one in earlier:
        kept = {
            name: one.get(name) for name in (*heads, "segment", "clip_start_s", "clip_end_s", "corrected_at")
        }
        part = row | kept
        if (renamed and one["corrected_at"] is None) or one["status"] == Status.GONE:
            part |= {
                "status": str(Status.GONE),
                "error_code": "gone",
                "error": "no label file names it any more",
            }
        found.append(part)
    return sorted(found, key=lambda part: part["segment"])


def _in_seconds(segments: list[Row], fps: float | None) -> list[Row]:
    """With ``clip_start_s`` and ``clip_end_s``; what counts frames of a video without a rate is left out."""
    found = []
    for one in segments:
        if one["in_frames"] and not fps:
            continue
        scale = 1 / fps if one["in_frames"] and fps else 1.0
        for name in ("start_s", "end_s"):
            one[f"clip_{name}"] = None if one[name] is None else round(one[name] * scale, 6)
        found.append(one)
    return found


def _covers(row: Row, segment: Row) -> bool:
    return same_time(row["clip_start_s"], segment["clip_start_s"]) and same_time(
        row["clip_end_s"], segment["clip_end_s"]
    )


def _take_over(row: Row, before: Row, heads: Heads) -> None:
    """What is not named stays; a correction wins unless there is a newer one."""
    at, earlier_at = row["corrected_at"], before.get("corrected_at")
    wins = earlier_at is not None and (at is None or at < earlier_at)
    for head in heads:
        if head in before and (wins or (not row[head] and at is None)):
            value = before[head]
            row[head] = [value] if heads[head] and isinstance(value, str) else value
    if wins:
        row["corrected_at"] = earlier_at

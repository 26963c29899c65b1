"""Corrections: what people said of rows, as the file that ``tubelet index --labels`` takes.

The page writes the same file by itself (``static/corrections.js``); here it is written for those who correct
on a page that is served, and for answers that come from elsewhere.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["accept", "relabel", "reject"]


@dataclass(frozen=True)
class Correction:
    """What was said of one row, primary key ``(key, window)``.

    Attributes:
        labels: by label column (``label``, ``label_<head>``); empty: leave this clip out of training.
        clip_start_s, clip_end_s: the clip's place in the video; None: the whole of it.
        previous: the label before.
        by, at: who and when (ISO 8601, UTC).
    """

    key: str
    window: int
    uri: str
    labels: Mapping[str, str] = field(default_factory=dict)
    clip_start_s: float | None = None
    clip_end_s: float | None = None
    previous: str | None = None
    by: str = ""
    at: str = ""
    note: str = ""


def corrections_csv(corrections: Iterable[Correction], heads: Sequence[str] = ("label",)) -> str:
    """The file, ordered by key: the same corrections are the same bytes.

    Args:
        heads: label columns, ``label`` first.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    before, after = ("key", "window", "uri"), ("clip_start_s", "clip_end_s", "previous", "by", "at", "note")
    writer.writerow([*before, *heads, *after])
    for one in sorted(corrections, key=lambda one: (one.key, one.window)):
        cells: list[Any] = [getattr(one, name) for name in before]
        cells += [one.labels.get(head) for head in heads]
        writer.writerow(cells + [getattr(one, name) for name in after])
    return text.getvalue()


def correction_of(row: Mapping[str, Any], said: Mapping[str, Any]) -> Correction | None:
    """A row of the page and what the page says of it; None: a note alone decides nothing."""
    if not said.get("action"):
        return None
    return Correction(
        key=row["key"],
        window=row["window"],
        uri=row["uri"],
        labels=dict(said.get("labels") or {}),
        clip_start_s=row["start"],
        clip_end_s=row["end"],
        previous=row.get("truth") or row["label"],
        by=said.get("by", ""),
        at=said.get("at", ""),
        note=said.get("note") or "",
    )

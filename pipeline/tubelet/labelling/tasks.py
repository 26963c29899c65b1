"""Predictions for other tools: a CSV of windows, and tasks of Label Studio with predictions to start from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from tubelet.cells import defused
from tubelet.video import Status

WINDOW_COLUMNS = ("uri", "start_s", "end_s", "label", "confidence")
# What the tags of the labelling interface are called: results refer to them.
TAG, VIDEO = "label", "video"
# Timelines count frames at the rate of their interface; readers of the results take the task's own.
FRAMES_PER_S = 24.0


def windows_csv(table: pa.Table, *, header: bool, formulas: bool = False) -> str:
    """The labelled rows as ``uri, start_s, end_s, label, confidence``; no times for a whole video."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(WINDOW_COLUMNS)
    for row in labelled(table):
        cells = [row["uri"], row["start_s"], row["end_s"], row["label"], row["confidence"]]
        writer.writerow(cells if formulas else [defused(cell) for cell in cells])
    return text.getvalue()


def label_studio_tasks(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    """One task per video: a choice for the whole of it, labels on its timeline for windows.

    They are imported into a project with the labelling interface that :func:`interface` gives.
    """
    waiting: dict[str, list[dict[str, Any]]] = {}
    for table in tables:
        for row in labelled(table):
            waiting.setdefault(row["uri"], []).append(row)
    for uri, rows in waiting.items():
        results = [_result(row) for row in sorted(rows, key=lambda row: row["start_s"] or 0.0)]
        scores = [row["confidence"] for row in rows if row["confidence"] is not None]
        prediction = {
            "model_version": rows[0]["model"],
            "score": min(scores) if scores else None,  # the least certain is what to look at
            "result": results,
        }
        yield {
            "data": {VIDEO: uri, "key": rows[0]["key"], "fps": FRAMES_PER_S},
            "predictions": [prediction],
        }


def interface(labels: Iterable[str], *, timeline: bool) -> str:
    """The labelling interface for such tasks, as Label Studio reads it."""
    from xml.sax.saxutils import quoteattr

    kind, item = ("TimelineLabels", "Label") if timeline else ("Choices", "Choice")
    lines = [f"    <{item} value={quoteattr(label)}/>" for label in labels]
    video = f'  <Video name="{VIDEO}" value="${VIDEO}" frameRate="{FRAMES_PER_S:g}"/>'
    parts = [video, f'  <{kind} name="{TAG}" toName="{VIDEO}">', *lines, f"  </{kind}>"]
    return "\n".join(["<View>", *parts, "</View>"]) + "\n"


def labelled(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows that have a label, each with ``confidence``: the calibrated one where there is one."""
    names = ("key", "uri", "status", "start_s", "end_s", "label", "score", "confidence", "model")
    for row in table.select([name for name in names if name in table.column_names]).to_pylist():
        if row["status"] != Status.ERROR and row["label"] is not None:
            confidence = row.get("confidence")
            yield row | {"confidence": row["score"] if confidence is None else confidence}


def _result(row: dict[str, Any]) -> dict[str, Any]:
    about = {"from_name": TAG, "to_name": VIDEO, "score": row["confidence"]}
    if row["start_s"] is None or row["end_s"] is None:
        return {**about, "type": "choices", "value": {"choices": [row["label"]]}}
    first, last = (round(row[name] * FRAMES_PER_S) for name in ("start_s", "end_s"))
    spans = [{"start": first + 1, "end": max(last, first + 1)}]
    return {**about, "type": "timelinelabels", "value": {"ranges": spans, "timelinelabels": [row["label"]]}}


def tasks_json(tables: Iterable[pa.Table]) -> Iterator[str]:
    """The file of tasks, piece by piece."""
    yield "["
    for number, task in enumerate(label_studio_tasks(tables)):
        yield ("," if number else "") + "\n" + json.dumps(task, ensure_ascii=False, allow_nan=False)
    yield "\n]\n"

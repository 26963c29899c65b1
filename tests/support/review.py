"""Rows as ``tubelet label`` and ``tubelet evaluate`` write them, for tests of what is made of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from playwright.sync_api import Page
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import PredictionSink, SinkLimits

from support.labelling import CLASSES

EVIL = "<script>window.hit=1</script><img src=x onerror=window.hit=1>"
VIDEOS, ERRORS = 50, 3
COLUMNS = ["key", "window", "uri", "label", "clip_start_s", "clip_end_s", "previous", "by", "at", "note"]


def row_of(i: int, uri: str) -> dict[str, Any]:
    """A row of ``tubelet label``, and the truth, which is right for four of five."""
    score = 0.30 + 0.6 * ((i * 37) % VIDEOS) / VIDEOS
    label = CLASSES[i % 3] if i else EVIL
    others = [name for name in CLASSES if name != label][:3]
    return {
        "key": f"k{i:04d}",
        "window": 0,
        "uri": uri,
        "status": "ok",
        "label": label,
        "score": score,
        "topk_labels": [label, *others],
        "topk_scores": [score, *[(1 - score) / 3] * 3],
        "views": 1,
        "clip_times_s": [0.0, 0.2, 0.4, 0.6],
        "model": "sha256:abc",
        "sampling": "8uniform@32",
        "label_true": label if i % 5 else others[0],
    }


def write_rows(out: Path, *parts: Sequence[dict[str, Any]]) -> Path:
    """An output of several parts."""
    schema = RowShape().schema().append(pa.field("label_true", pa.string()))
    sink = PredictionSink(OutputFiles(str(out)), schema, SinkLimits(part_rows=1))
    for rows in parts:
        sink.add(table_of(rows, schema))
    return out


def wait_for_video(page: Page, ready_state: int = 2) -> None:
    """Until the player on ``page`` has that much of its video (its policy forbids `wait_for_function`)."""
    for _ in range(200):
        if page.evaluate("document.querySelector('video')?.readyState ?? -1") >= ready_state:
            return
        page.wait_for_timeout(50)
    raise AssertionError("the video does not play: " + page.locator(".player").inner_text())


def press(page: Page, *keys: str) -> None:
    """One key after the other."""
    for key in keys:
        page.keyboard.press(key)


def downloaded(page: Page, target: Path | None = None) -> list[dict[str, str]]:
    """The rows of the corrections file that the page hands out, which is kept at ``target``."""
    with page.expect_download() as waiting:
        page.keyboard.press("d")
    assert waiting.value.suggested_filename == "corrections.csv"
    text = waiting.value.path().read_text("utf-8")
    if target is not None:
        target.write_text(text, "utf-8")
    assert next(csv.reader(io.StringIO(text))) == COLUMNS
    return list(csv.DictReader(io.StringIO(text)))

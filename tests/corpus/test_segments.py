"""Labelled parts of videos are rows of the manifest, and everything after the index goes by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.corpus import put, put_text, run_index, video_bytes
from tubelet.corpus.index import IndexSummary
from tubelet.corpus.manifest import read_manifest
from tubelet.training.examples import load_examples

_HEAD = "path,label,clip_start_s,clip_end_s"


def _rows(out: str) -> list[tuple[Any, ...]]:
    names = ("path", "segment", "label", "clip_start_s", "clip_end_s", "status")
    rows = read_manifest(out).select(names).sort_by([("path", "ascending"), ("segment", "ascending")])
    return [tuple(row.values()) for row in rows.to_pylist()]


def test_segments_keep_their_numbers_and_corrections_through_updates(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put(src, {"a.mp4": video_bytes(frames=30), "b.mp4": video_bytes(frames=9)})
    labels = put_text(
        str(tmp_path / "l.csv"),
        _HEAD,
        "a.mp4,run,0.5,1.5",
        "a.mp4,jump,2,2.5",
        "b.mp4,run,,",
        "a.mp4,run,2,2.5",
    )
    first = run_index(src, out, labels=labels, split="train=1")
    assert (first.objects, first.labelled, first.segments, first.probed) == (2, 2, 3, 2)
    whole = ("b.mp4", 0, "run", None, None, "ok")
    parts = [
        ("a.mp4", 1, "run", 0.5, 1.5, "ok"),
        ("a.mp4", 2, "jump", 2, 2.5, "ok"),
        ("a.mp4", 3, "run", 2, 2.5, "ok"),
    ]
    assert _rows(out) == [*parts, whole]

    corrections = put_text(
        str(tmp_path / "c.csv"),
        "path,window,label,clip_start_s,clip_end_s,by,at",
        "a.mp4,2,,2,2.5,me,2026-01-02",
        "b.mp4,1,fall,0.3,0.6,me,2026-01-02",
    )
    second = run_index(src, out, labels=corrections, update=True)
    assert (second.probed, second.left_out, second.segments, second.labelled) == (0, 1, 4, 2)
    left_out, fall = ("a.mp4", 2, None, 2, 2.5, "ok"), ("b.mp4", 1, "fall", 0.3, 0.6, "ok")
    assert _rows(out) == [parts[0], left_out, parts[2], whole, fall]

    # Without the corrections beside it, the label file of before changes nothing that was corrected.
    put_text(labels, _HEAD, "a.mp4,swim,0,0.5", "a.mp4,jump,2,2.5", "b.mp4,walk,,")
    third = run_index(src, out, labels=labels, update=True)
    assert (third.probed, third.left_out) == (0, 1)
    gone = [("a.mp4", 1, "run", 0.5, 1.5, "gone"), left_out, ("a.mp4", 3, "run", 2, 2.5, "gone")]
    assert _rows(out) == [
        *gone,
        ("a.mp4", 4, "swim", 0, 0.5, "ok"),
        ("b.mp4", 0, "walk", None, None, "ok"),
        fall,
    ]
    _trains_on_its_parts(out)
    assert _again(src, out) == (0, 2)


def _again(src: str, out: str) -> tuple[int, int]:
    before = _rows(out)
    summary: IndexSummary = run_index(src, out, update=True)
    assert _rows(out) == before
    return summary.probed, summary.unchanged


def _trains_on_its_parts(out: str) -> None:
    examples = load_examples(read_manifest(out), {"label": "label"})
    assert sorted(
        zip(*(examples.table[n].to_pylist() for n in ("clip_start_s", "clip_end_s")), strict=True), key=str
    ) == [
        (0, 0.5),
        (0.3, 0.6),
        (None, None),
    ]


def test_frames_of_an_export_become_seconds(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put(src, {"a.mp4": video_bytes(frames=30)})
    box = '<box frame="{}" outside="0"/>'
    xml = '<annotations><meta><task><source>a.mp4</source></task></meta><track label="x">'
    xml += box.format(5) + box.format(9)
    run_index(src, out, labels=put_text(str(tmp_path / "l.xml"), f"{xml}</track></annotations>"))
    assert _rows(out) == [("a.mp4", 1, "x", 0.5, 1.0, "ok")]

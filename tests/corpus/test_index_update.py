"""Indexing again: an update opens what changed, and loses nothing that it is not given."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from support.corpus import (
    counts,
    manifest_rows,
    picture_bytes,
    put,
    put_text,
    put_videos,
    run_index,
    video_bytes,
)
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.fingerprint import fingerprint
from tubelet.corpus.manifest import read_manifest, write_manifest
from tubelet.corpus.selection import class_names


def test_update_opens_only_what_changed(root: str) -> None:
    src, out = f"{root}/v", f"{root}/m.parquet"
    put_videos(src, ["a/same.mp4", "b/changed.mp4", "b/removed.mp4"])
    put(src, {"a/bad.mp4": b"broken"})
    assert counts(run_index(src, out, labels="folders")) == (4, 3, 1, 4, 0, 0)
    first = manifest_rows(out)
    put(src, {"b/changed.mp4": video_bytes(frames=9), "b/new.mp4": video_bytes(seed=9)})
    storage.delete(f"{src}/b/removed.mp4")
    assert counts(run_index(src, out, update=True)) == (4, 3, 1, 2, 2, 1)
    second = manifest_rows(out)
    assert (second["b/changed.mp4"]["frames"], second["b/new.mp4"]["label"]) == (9, "b")
    assert second["a/same.mp4"] == first["a/same.mp4"]
    assert second["a/bad.mp4"] == first["a/bad.mp4"]
    gone = second["b/removed.mp4"]
    assert (gone["status"], gone["error_code"], gone["label"]) == ("gone", "gone", "b")
    assert counts(run_index(src, out, update=True)) == (4, 3, 1, 0, 4, 0)
    assert manifest_rows(out) == second
    put(src, {"b/removed.mp4": video_bytes(seed=2)})
    assert counts(run_index(src, out, update=True)) == (5, 4, 1, 1, 4, 0)
    assert manifest_rows(out)["b/removed.mp4"]["status"] == "ok"


def test_update_can_change_labels_without_opening_anything(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, ["a.mp4", "b.mp4", "c.mp4"])
    run_index(src, out)
    before = read_manifest(out)
    labels = put_text(str(tmp_path / "l.csv"), "path,label_noun,label_verb", "a.mp4,x|y,go", "b.mp4,z,")
    summary = run_index(src, out, labels=labels, update=True)
    assert (summary.probed, summary.unchanged, summary.labelled) == (0, 3, 2)
    rows = manifest_rows(out)
    assert (rows["a.mp4"]["label_noun"], rows["a.mp4"]["label_verb"]) == (["x", "y"], "go")
    assert rows["c.mp4"]["label_noun"] is None
    assert fingerprint(read_manifest(out)) != fingerprint(before)
    assert class_names(read_manifest(out), "label_noun") == ["x", "y", "z"]


def test_update_remembers_labels_and_split(root: str) -> None:
    src, out = f"{root}/v", f"{root}/m"
    put_videos(src, ["a.mp4", "b.mp4"])
    labels = put_text(f"{root}/l.csv", "path,label,fold", "a.mp4,x,one", "b.mp4,y,two", "c.mp4,x,two")
    run_index(src, out, labels=labels, split="column:fold")
    put_videos(src, ["a.mp4", "b.mp4", "c.mp4"])
    assert run_index(src, out, update=True).splits == {"one": 1, "two": 2}
    assert manifest_rows(out)["c.mp4"]["label"] == "x"
    storage.delete(labels)
    with pytest.raises(UserError, match="there is no label file"):
        run_index(src, out, update=True)


def test_update_with_other_labels_moves_no_video_to_another_split(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, ["a.mp4", "b.mp4"])
    labels = put_text(str(tmp_path / "l.csv"), "path,label,split", "a.mp4,x,test", "b.mp4,y,train")
    run_index(src, out, labels=labels)
    corrections = put_text(str(tmp_path / "c.csv"), "path,window,label,at", "a.mp4,0,y,2026-01-02")
    put(src, {"c.mp4": video_bytes(seed=7)})
    for labels in (corrections, None):
        summary = run_index(src, out, labels=labels, update=True)
        assert (summary.splits, summary.labelled) == ({"test": 1, "train": 1}, 2)
    assert (manifest_rows(out)["a.mp4"]["label"], manifest_rows(out)["c.mp4"]["split"]) == ("y", None)


def test_update_of_another_corpus_is_refused(tmp_path: Path) -> None:
    put_videos(str(tmp_path / "v"), ["a.mp4"])
    put_videos(str(tmp_path / "w"), ["b.mp4"])
    run_index(str(tmp_path / "v"), str(tmp_path / "m"))
    with pytest.raises(UserError, match=r"the manifest is of .*/v, and shares no object with .*/w"):
        run_index(str(tmp_path / "w"), str(tmp_path / "m"), update=True)


def test_update_looks_again_at_what_an_earlier_version_took_for_a_video(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m.parquet")
    put_videos(src, ["a.mp4", "b.mp4"])
    put(src, {"a.jpg": picture_bytes()})
    run_index(src, out)
    table = read_manifest(out).drop_columns(["attempts"])
    status = pa.array(["ok" if s == "not_video" else s for s in table["status"].to_pylist()])
    table = table.set_column(table.column_names.index("status"), "status", status)
    write_manifest(table, out, made_from={"src": src, "version": "0.1"})
    summary = run_index(src, out, update=True)
    assert (summary.probed, summary.unchanged, summary.not_video) == (1, 2, 1)


def test_update_keeps_labels_of_heads_that_it_is_not_given(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, ["a.mp4", "b.mp4"])
    labels = put_text(str(tmp_path / "l.csv"), "path,label,label_scene", "a.mp4,x,in|out", "b.mp4,y,out")
    run_index(src, out, labels=labels)
    put_text(labels, "path,label", "a.mp4,y", "b.mp4,x")
    put(src, {"a.mp4": video_bytes(seed=5), "c.mp4": video_bytes(seed=6)})
    run_index(src, out, update=True)
    rows = manifest_rows(out)
    assert [rows[p]["label"] for p in ("a.mp4", "b.mp4", "c.mp4")] == ["y", "x", None]
    assert [rows[p]["label_scene"] for p in ("a.mp4", "b.mp4", "c.mp4")] == [["in", "out"], ["out"], None]
    table = read_manifest(out)
    table = table.set_column(table.column_names.index("split"), "split", pa.array(["mine", "other", None]))
    write_manifest(table, out)  # as another tool writes it
    summary = run_index(src, out, update=True)
    assert (summary.splits, summary.labelled, summary.probed) == ({"mine": 1, "other": 1}, 2, 0)


@pytest.mark.parametrize("column", ["segment", "clip_end_s"])
def test_update_keeps_segments_of_another_tool(tmp_path: Path, column: str) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, ["a.mp4"])
    run_index(src, out)
    table = read_manifest(out)
    field = table.schema.field(column)
    write_manifest(table.set_column(table.column_names.index(column), field, pa.array([1], field.type)), out)
    assert run_index(src, out, update=True).unchanged == 1
    (row,) = read_manifest(out).to_pylist()
    assert (row[column], row["status"]) == (1, "ok")


def test_unreadable_object_is_tried_again_on_update(tmp_path: Path) -> None:
    put_videos(str(tmp_path / "v"), ["a.mp4", "b.mp4"])
    (tmp_path / "v" / "c.mp4").symlink_to(tmp_path / "later.mp4")
    assert counts(run_index(str(tmp_path / "v"), str(tmp_path / "m"))) == (3, 2, 1, 3, 0, 0)
    assert manifest_rows(str(tmp_path / "m"))["c.mp4"]["error_code"] == "not_found"
    again = run_index(str(tmp_path / "v"), str(tmp_path / "m"), update=True)
    assert (again.probed, again.to_retry, again.reasons) == (1, 1, {"not_found": 1})
    put_videos(str(tmp_path), ["later.mp4"])
    assert counts(run_index(str(tmp_path / "v"), str(tmp_path / "m"), update=True)) == (3, 3, 0, 1, 2, 0)


def test_what_ends_so_three_times_is_final_until_asked_for(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, ["a.mp4", "b.mp4"])
    (tmp_path / "v" / "c.mp4").symlink_to(tmp_path / "later.mp4")
    for attempts, probed, left in ((1, 3, 1), (2, 1, 1), (3, 1, 0), (3, 0, 0)):
        summary = run_index(src, out, update=attempts > 1)
        assert (summary.probed, summary.to_retry, summary.errors) == (probed, left, 1)
        assert manifest_rows(out)["c.mp4"]["attempts"] == attempts
    put_videos(str(tmp_path), ["later.mp4"])
    again = run_index(src, out, update=True, retry_errors=True)
    # a link to something else is another object
    assert (again.probed, again.ok, manifest_rows(out)["c.mp4"]["attempts"]) == (1, 3, 0)

"""Indexing a real corpus, locally and on S3: every object is a row, and running again costs what changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pytest
from support import SHARED, S3Bucket
from support.corpus import (
    ODD_NAMES,
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
from tubelet.corpus.manifest import SCHEMA, key_of, manifest_exists, read_manifest
from tubelet.corpus.selection import class_names, select
from tubelet.storage.local_s3 import LocalS3
from tubelet.storage.lock import OutputLock
from tubelet.video import DecoderStartError


def test_decoder_that_cannot_start_is_no_object_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_videos(f"{tmp_path}/v", ["a.mp4", "b.mp4"])
    (tmp_path / "first").mkdir()
    (tmp_path / "first/av.py").write_text("raise ImportError('no libavcodec')\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path / "first")
    with pytest.raises(DecoderStartError, match="no libavcodec"):
        run_index(f"{tmp_path}/v", f"{tmp_path}/manifest")
    assert not storage.exists(f"{tmp_path}/manifest")


def test_every_object_is_a_row(root: str) -> None:
    put_videos(f"{root}/v", ["left/a.mp4", "right/b.mp4", *ODD_NAMES])
    put(
        f"{root}/v",
        {
            "left/readme.txt": b"not a video",
            "left/empty.mp4": b"",
            "right/cut.mp4": video_bytes()[:300],
            "_hidden/x.mp4": b"x",
        },
    )
    summary = run_index(f"{root}/v", f"{root}/manifest", labels="folders")
    assert counts(summary) == (12, 9, 2, 12, 0, 0)
    assert (summary.not_video, summary.skipped, summary.to_retry) == (1, 1, 0)
    rows = manifest_rows(f"{root}/manifest")
    video = rows["left/a.mp4"]
    assert video["key"] == key_of("left/a.mp4")
    assert (video["status"], video["codec"], video["label"]) == ("ok", "h264", "left")
    assert (video["width"], video["height"], video["rotation"]) == (64, 48, 0)
    assert (video["frames"], video["fps"], video["segment"]) == (6, 10.0, 0)
    assert video["keyframes_s"] == pytest.approx([0.0, 0.3])
    assert video["duration_s"] == pytest.approx(0.6)
    assert video["indexed_at"] is not None
    for path in ("left/readme.txt", "left/empty.mp4", "right/cut.mp4"):
        row = rows[path]
        assert row["status"] == ("not_video" if path.endswith(".txt") else "error")
        assert row["error_code"]
        assert row["error"]
        assert row["codec"] is None
    assert all(rows[name]["status"] == "ok" for name in ODD_NAMES)
    assert read_manifest(f"{root}/manifest").schema.equals(SCHEMA)


def test_local_and_s3_give_equal_manifests(tmp_path: Path, s3: S3Bucket) -> None:
    places = [str(tmp_path), s3.uri]
    tables = []
    for place in places:
        put_videos(f"{place}/v", ["left/a b.mp4", "right/c.mp4", "right/größe.mp4"])
        put(f"{place}/v", {"left/bad.mp4": b"nonsense"})
        run_index(f"{place}/v", f"{place}/m", labels="folders")
        rows = sorted(read_manifest(f"{place}/m").to_pylist(), key=lambda row: row["key"])
        for row in rows:
            for name in ("uri", "etag", "indexed_at"):
                del row[name]
        tables.append(rows)
    assert tables[0] == tables[1]


def test_copied_bucket_keeps_keys_and_splits(tmp_path: Path, s3: S3Bucket) -> None:
    paths = [f"{i}.mp4" for i in range(8)]
    for place in (str(tmp_path), s3.uri):
        put(f"{place}/v", dict.fromkeys(paths, b"not a video"))
        run_index(f"{place}/v", f"{place}/m")
    local, remote = manifest_rows(str(tmp_path / "m")), manifest_rows(f"{s3.uri}/m")
    assert [(r["key"], r["split"]) for r in local.values()] == [
        (remote[p]["key"], remote[p]["split"]) for p in local
    ]


def test_labels_and_manifest_among_the_videos_do_not_count(root: str) -> None:
    put_videos(root, ["a.mp4", "b.mp4"])
    labels = put_text(f"{root}/labels.csv", "path,label", "a.mp4,x", "b.mp4,y")
    put_text(f"{root}/notes.csv", "this one is an object")
    for out in (f"{root}/m.parquet", f"{root}/m"):
        run_index(root, out, labels=labels)
        summary = run_index(root, out, update=True)
        assert summary.unchanged == summary.objects
        assert "notes.csv" in manifest_rows(out)
        assert set(manifest_rows(out)) - {"m.parquet"} == {"a.mp4", "b.mp4", "notes.csv"}


def test_include(root: str) -> None:
    put_videos(f"{root}/v", ["a.mp4", "x/b.mp4"])
    put(f"{root}/v", {"a.txt": b"1"})
    assert counts(run_index(f"{root}/v", f"{root}/m", include="*.mp4")) == (2, 2, 0, 2, 0, 0)
    with pytest.raises(UserError, match=r"matches --include '\*.avi'"):
        run_index(f"{root}/v", f"{root}/n", include="*.avi")


def test_counts_add_up_to_what_find_counts(tmp_path: Path) -> None:
    """A folder as people have it: sidecars, stills, odd names, words for splits, a label file among them."""
    src = tmp_path / "v"
    put_videos(str(src), [f"train/{c}/_{c}{i}.mp4" for c in ("run", "jump") for i in range(2)])
    put_videos(str(src), ["validation/run/a.mp4", "validation/jump/b", "spare/c.mp4"])
    put(
        str(src),
        {
            "train/run/a.jpg": picture_bytes(),
            "train/run/renamed.mp4": picture_bytes(),
            "train/run/a.srt": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n",
            "train/jump/b.json": b'{"a": 1}',
            "train/jump/notes": b"text without an extension",
            "train/jump/broken.mp4": video_bytes()[:300],
            "train/_SUCCESS": b"",
            ".DS_Store": b"x",
            "_tmp/part.mp4": b"x",
        },
    )
    raw = os.path.join(os.fsencode(src), b"train", b"run", b"caf\xe9.mp4")
    Path(os.fsdecode(raw)).write_bytes(video_bytes())
    found = subprocess.run(["find", str(src), "-type", "f"], capture_output=True, check=True)
    out = str(src / "m")
    summary = run_index(str(src), out, labels="folders")
    assert summary.objects + summary.skipped == len(found.stdout.splitlines()) == 17
    assert summary.objects == summary.ok + summary.errors + summary.not_video
    assert (summary.ok, summary.errors, summary.not_video, summary.skipped) == (8, 3, 3, 3)
    assert summary.splits == {"train": 8, "val": 2}
    assert summary.labelled == 10
    rows = manifest_rows(out)
    for path in ("train/run/a.jpg", "train/run/a.srt", "train/jump/b.json"):
        assert (rows[path]["status"], rows[path]["label"], rows[path]["split"]) == ("not_video", None, None)
    for path, code in (("train/run/renamed.mp4", "not_video"), ("train/jump/notes", "open_error")):
        assert (rows[path]["status"], rows[path]["error_code"]) == ("error", code)
    assert rows["train/run/caf\\udce9.mp4"]["status"] == "ok"
    assert select(read_manifest(out), "train").num_rows == 5
    again = run_index(str(src), out, update=True)
    assert (again.probed, again.objects, again.skipped) == (0, summary.objects, summary.skipped)
    assert (again.ok, again.errors, again.not_video) == (8, 3, 3)
    dry = run_index(str(src), out, update=True, dry_run=True)
    assert (dry.objects, dry.skipped, dry.to_probe) == (summary.objects, 3, 0)


def test_a_label_file_that_names_an_object_takes_it_for_a_video(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, ["a.mp4", "b.mp4"])
    put(src, {"c.txt": b"text", "d.txt": b"text"})
    labels = put_text(f"{src}/l.csv", "path,label", "a.mp4,x", "b.mp4,y", "c.txt,x")
    assert run_index(src, out).not_video == 3
    summary = run_index(src, out, labels=labels, update=True)
    assert (summary.errors, summary.not_video, summary.skipped, summary.probed) == (1, 1, 1, 0)
    assert manifest_rows(out)["c.txt"]["status"] == "error"
    put_text(labels, "path,label", "a.mp4,x", "b.mp4,y")
    summary = run_index(src, out, update=True)
    assert (summary.errors, summary.not_video, summary.probed) == (0, 2, 0)


def test_dry_run_writes_nothing(root: str) -> None:
    put_videos(f"{root}/v", ["a.mp4", "b.mp4"])
    summary = run_index(f"{root}/v", f"{root}/m", dry_run=True)
    assert (summary.objects, summary.probed, summary.to_probe, summary.dry_run) == (2, 0, 2, True)
    assert not storage.exists(f"{root}/m")


def test_existing_output_is_refused(root: str) -> None:
    put_videos(f"{root}/v", ["a.mp4"])
    for out in (f"{root}/m.parquet", f"{root}/m"):
        run_index(f"{root}/v", out)
        with pytest.raises(UserError, match=r"exists: add --update"):
            run_index(f"{root}/v", out)
    with pytest.raises(UserError, match=r"a folder with other things in it \('a.mp4'\)"):
        run_index(f"{root}/v", f"{root}/v")
    with pytest.raises(UserError, match="is a file that is no manifest"):
        run_index(f"{root}/v", f"{root}/v/a.mp4")


def test_two_jobs_on_one_output(root: str) -> None:
    put_videos(f"{root}/v", ["a.mp4"])
    with OutputLock(f"{root}/m", job="tubelet index"), pytest.raises(UserError, match="is in use by"):
        run_index(f"{root}/v", f"{root}/m")
    run_index(f"{root}/v", f"{root}/m")


def test_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no videos under"):
        run_index(str(tmp_path / "empty"), str(tmp_path / "m"))
    put(str(tmp_path / "hidden"), {"_a/b.mp4": b"1", ".b/c.mp4": b"1", ".d.mp4": b"1"})
    with pytest.raises(UserError, match=r"folders that begin with `\.` or `_` do not count"):
        run_index(str(tmp_path / "hidden"), str(tmp_path / "m"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "hidden"]


def test_empty_prefix_on_s3(s3: S3Bucket) -> None:
    with pytest.raises(UserError, match="there is nothing under s3://"):
        run_index(f"{s3.uri}/none", f"{s3.uri}/m")


def test_user_errors_come_before_any_video_is_opened(root: str) -> None:
    """A label file that fits nothing must not cost hours first."""
    put(f"{root}/v", {f"{i}.mp4": b"x" for i in range(3)})
    labels = put_text(f"{root}/l.csv", "path,label", "other.mp4,x")
    with pytest.raises(UserError, match="0 of 1 rows match the 3 objects"):
        run_index(f"{root}/v", f"{root}/m", labels=labels)
    assert not manifest_exists(f"{root}/m")


def test_manifest_is_read_by_everybody(root: str) -> None:
    put_videos(f"{root}/v", ["a.mp4", "b.mp4"])
    for out, pattern in ((f"{root}/m.parquet", f"{root}/m.parquet"), (f"{root}/m", f"{root}/m/*.parquet")):
        run_index(f"{root}/v", out)
        filesystem, path = storage.filesystem(out)
        assert ds.dataset(path, filesystem=filesystem).count_rows() == 2
        assert len(pd.read_parquet(path, filesystem=filesystem)) == 2
        if not storage.is_remote(out):
            assert len(pd.read_parquet(out)) == 2
            assert duckdb.sql(f"select * from '{pattern}'").fetchall()


def test_reader_never_sees_half_a_manifest(root: str) -> None:
    src, out = f"{root}/v", f"{root}/m"
    put(src, {f"{i:03d}.mp4": b"x" for i in range(12)})
    run_index(src, out)
    stop = threading.Event()
    seen: set[int] = set()
    failures: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(read_manifest(out).num_rows)
            except BaseException as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    put(src, {f"{i:03d}.mp4": b"x" for i in range(12, 18)})
    run_index(src, out, update=True)
    stop.set()
    reader.join()
    assert not failures
    assert seen <= {12, 18}


def test_broken_store_is_not_ten_thousand_error_rows(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a.mp4": b"1", "b.mp4": b"1"})
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "v" / name).unlink()
        (tmp_path / "v" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"none of the first 2 objects could be read: not_found"):
        run_index(str(tmp_path / "v"), str(tmp_path / "m"))
    assert not storage.exists(tmp_path / "m")


def test_probing_fetches_a_part_of_a_large_object(s3: S3Bucket) -> None:
    from tubelet.storage.opener import ObjectOpener
    from tubelet.video import probe

    content = video_bytes(frames=60, width=640, height=480)
    assert len(content) > 8_000_000
    put(s3.uri, {"big.mp4": content})
    info = storage.stat(f"{s3.uri}/big.mp4")
    assert info is not None
    opened: list[Any] = []

    def source() -> Any:
        opened.append(ObjectOpener(info.uri, info.size_bytes, info.etag)())
        return opened[-1]

    assert probe(source).frames == 60
    assert sum(file.bytes_fetched for file in opened) < 0.25 * len(content)


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    """A server that a test may stop."""
    with LocalS3(tmp_path / "server", ("own-bucket",)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_store_that_goes_away_for_a_moment_costs_nothing(
    own_server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "20")  # on a busy machine the server takes long to be back
    put_videos("s3://own-bucket/v", [f"{i}.mp4" for i in range(4)])
    own_server.stop()
    restart = threading.Timer(1.0, own_server.start)
    restart.start()
    try:
        assert counts(run_index("s3://own-bucket/v", str(tmp_path / "m"))) == (4, 4, 0, 4, 0, 0)
    finally:
        restart.join()


def test_killed_job_leaves_no_manifest_and_no_lock(root: str) -> None:
    put_videos(f"{root}/v", ["a.mp4"])
    command = [sys.executable, "-m", "tubelet_jobs", "index", f"{root}/v", "--out", f"{root}/m"]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert job.stderr is not None
        assert job.stderr.readline().startswith("listing: 1 objects")
    finally:
        job.kill()
        job.wait()
    with pytest.raises(UserError, match="there is no manifest"):
        read_manifest(f"{root}/m")
    assert counts(run_index(f"{root}/v", f"{root}/m")) == (1, 1, 0, 1, 0, 0)


def test_progress_is_told_in_plain_lines(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_videos(f"{root}/v", ["a.mp4", "b.mp4"])
    put(f"{root}/v", {"c.mp4": b"x"})
    run_index(f"{root}/v", f"{root}/m")
    said = capsys.readouterr().err
    assert "listing: 3 objects" in said
    assert "indexing: 3/3 videos" in said
    assert "errors 1" in said


@pytest.mark.skipif(not (SHARED / "data" / "actions").is_dir(), reason="needs the shared real videos")
def test_real_set_with_its_label_file(tmp_path: Path) -> None:
    folder = SHARED / "data" / "actions" / "drone_track_visible4"
    summary = run_index(
        str(folder), str(tmp_path / "m"), labels=f"{folder}.csv", split="column:split", include="*_00*.mp4"
    )
    assert summary.objects == summary.ok == summary.labelled > 20
    table = read_manifest(tmp_path / "m")
    assert class_names(table, at_least=2) == ["airplane", "bird", "drone", "helicopter"]
    assert select(table, "train", labelled=True, required=True).num_rows == summary.splits["train"]
    assert os.path.isfile(table["uri"][0].as_py())

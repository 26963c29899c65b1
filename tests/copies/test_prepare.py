"""`tubelet prepare`: copies of a manifest's videos, once each, and a manifest that stands for the first."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import S3Bucket
from support.corpus import put_text, run_index
from support.labelling import write_corpus, write_video
from tubelet import storage
from tubelet.clips import ClipDecoder, ClipSpec
from tubelet.config import UserError, load_settings
from tubelet.copies.config import PrepareConfig
from tubelet.copies.job import PrepareJob, PrepareSummary
from tubelet.copies.worker import CopyJob, CopyWorker
from tubelet.corpus.manifest import made_from, read_manifest
from tubelet.inference.workers import DecodeJob
from tubelet.video import probe

COUNT, BROKEN = 4, 2


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small videos, one of them broken."""
    return write_corpus(tmp_path_factory.mktemp("prepare") / "videos", COUNT, broken=[BROKEN])


def config(source: object, out: object, **more: Any) -> PrepareConfig:
    given = {"source": str(source), "out": str(out), "short_side": 32, "gop": 4, "max_error_rate": 1, **more}
    return load_settings(PrepareConfig, given)


def prepare(source: object, out: object, **more: Any) -> PrepareSummary:
    return PrepareJob(config(source, out, **more)).run(lambda: None)


def no_ray() -> None:
    raise AssertionError("there was something to copy")


def rows_of(manifest: object) -> dict[tuple[str, int], dict[str, Any]]:
    rows = read_manifest(str(manifest)).to_pylist()
    return {(row["path"], row["segment"]): row for row in rows}


def test_a_manifest_of_copies_stands_for_that_of_the_originals(
    videos: Path, s3: S3Bucket, tmp_path: Path, ray_cluster: None
) -> None:
    manifest, out = f"{s3.uri}/manifest", f"{s3.uri}/copies"
    labels = put_text(f"{s3.uri}/labels.csv", "path,label", "v00000.mp4,a", "v00001.mp4,b")
    run_index(str(videos), manifest, labels=(labels,))
    summary = prepare(manifest, out)
    assert (summary.objects, summary.ok, summary.errors, summary.copied) == (COUNT, COUNT - 1, 1, COUNT - 1)

    before, after = rows_of(manifest), rows_of(out)
    assert before.keys() == after.keys()
    for place, row in after.items():
        old = before[place]
        for name in ("key", "label", "split", "group", "status", "error_code", "frames", "duration_s"):
            assert row[name] == old[name], name
        assert (row["origin_uri"], row["origin_etag"]) == (old["uri"], old["etag"])
        if row["status"] == "ok":
            assert row["uri"].startswith(f"{out}/_videos/")
            assert storage.stat(row["uri"]).etag == row["etag"]  # type: ignore[union-attr]
            assert (row["width"], row["height"], row["codec"]) == (32, 32, "h264")
            assert row["keyframes_s"] == pytest.approx([0, 0.4, 0.8])
    assert re.fullmatch(re.escape(manifest) + "@[0-9a-f]{12}", made_from(out)["prepared_from"])

    # Clips of the one are clips of the other.
    decoder = ClipDecoder(ClipSpec(frames=4, stride=None, size=32, short_side=32))
    old, new = (
        pd.DataFrame([row for row in rows.values() if row["status"] == "ok"]) for rows in (before, after)
    )
    columns = ["key", "uri", "etag", "size"]
    clips = [decoder({name: frame[name].to_numpy() for name in columns}) for frame in (old, new)]
    decoder.close()
    np.testing.assert_allclose(clips[0]["clip_times_s"], clips[1]["clip_times_s"])
    difference = clips[0]["tubelets"].astype(float) - clips[1]["tubelets"].astype(float)
    assert np.abs(difference).mean() < 8

    again = PrepareJob(config(manifest, out)).run(no_ray)
    assert (again.copied, again.already_done, again.ok, again.errors) == (0, COUNT, COUNT - 1, 1)
    with pytest.raises(UserError, match=r"rows made otherwise: copies .*\nChoose another --out$"):
        PrepareJob(config(manifest, out, short_side=24)).run(no_ray)


def test_what_is_new_or_changed_is_copied_and_what_lies_there_is_taken(
    videos: Path, tmp_path: Path, ray_cluster: None
) -> None:
    source, out = tmp_path / "videos", tmp_path / "copies"
    shutil.copytree(videos, source)
    assert prepare(source, out).copied == COUNT - 1
    files = {path: path.stat().st_mtime_ns for path in (out / "_videos").rglob("*.mp4")}
    assert len(files) == COUNT - 1

    # As after a kill before the rows were published: the copies are there, and are not made again.
    for part in (out / "_copies").glob("part-*"):
        part.unlink()
    write_video(source / "v00000.mp4", 9)
    write_video(source / "new.mp4", 5)
    summary = prepare(source, out)
    assert (summary.ok, summary.errors) == (COUNT, 1)
    now = {path: path.stat().st_mtime_ns for path in (out / "_videos").rglob("*.mp4")}
    assert {path: now[path] for path in files} == files
    assert len(now) == COUNT + 1  # the changed one, and the new one, beside the copy of what was before
    rows = rows_of(out)
    assert sorted(path for path, _ in rows) == ["new.mp4", *(f"v{n:05d}.mp4" for n in range(COUNT))]
    assert len({row["uri"] for row in rows.values()}) == COUNT + 1


def test_copies_of_public_videos_are_written_with_credentials(videos: Path, s3: S3Bucket) -> None:
    given = config(videos, f"{s3.uri}/copies", storage={"anonymous": True})
    with pytest.raises(AssertionError, match="something to copy"):
        PrepareJob(given).run(no_ray)
    row = next(
        row for row in read_manifest(f"{s3.uri}/copies/_manifest").to_pylist() if row["status"] == "ok"
    )
    job = CopyJob(given.spec, f"{s3.uri}/copies/_videos")
    decode = DecodeJob((), storage=given.storage, limits=given.limits.limits())
    worker = CopyWorker(decode, lambda _: iter(()), job, 1)
    try:
        for _ in range(2):  # the second time it is there
            made = worker.row({**row, "request": 0, "window": 0})
            assert made["status"] == "ok", made
            assert storage.stat(made["copy_uri"]).etag == made["copy_etag"]  # type: ignore[union-attr]
    finally:
        worker.close()


@pytest.mark.parametrize("alone", [False, True], ids=["whole", "segments"])
def test_segments_keep_their_places_or_become_files(alone: bool, tmp_path: Path, ray_cluster: None) -> None:
    write_video(tmp_path / "videos" / "long.mp4", 1, frames=40)
    text = ["path,label,clip_start_s,clip_end_s", "long.mp4,a,0.5,1.5", "long.mp4,b,2,3.2"]
    labels, manifest, out = (
        put_text(str(tmp_path / "l.csv"), *text),
        tmp_path / "manifest",
        tmp_path / "copies",
    )
    run_index(str(tmp_path / "videos"), str(manifest), labels=(labels,))
    assert prepare(manifest, out, segments=alone).objects == (2 if alone else 1)
    rows, before = rows_of(out), rows_of(manifest)
    assert [row["label"] for row in rows.values()] == ["a", "b"]
    for place, row in rows.items():
        span = [before[place][name] for name in ("clip_start_s", "clip_end_s")]
        assert [row["clip_start_s"], row["clip_end_s"]] == ([None, None] if alone else span)
        assert [row["origin_clip_start_s"], row["origin_clip_end_s"]] == span
        assert probe(row["uri"]).frames == (round((span[1] - span[0]) * 10) if alone else 40)


@pytest.mark.parametrize(
    "source", ["s3://b/shard-{000000..000012}.tar", "train-0001.tar.gz", "videos.lance/"]
)
def test_packed_sources_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are not read as sources\nunpack"):
        PrepareJob(config(source, tmp_path / "out"))


def test_an_output_of_something_else_is_refused(videos: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    run_index(str(videos), str(manifest))
    with pytest.raises(UserError, match="is the manifest that is copied from"):
        PrepareJob(config(manifest, manifest)).run(no_ray)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things"):
        PrepareJob(config(manifest, tmp_path / "other")).run(no_ray)
    with pytest.raises(UserError, match="copies go into a folder"):
        PrepareJob(config(manifest, tmp_path / "copies.parquet"))

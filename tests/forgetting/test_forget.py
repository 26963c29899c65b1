"""`tubelet forget`: nothing of a video is left below what is named, and an index does not bring it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpus import manifest_rows, put_text, run_index
from support.labelling import write_corpus
from tubelet import storage
from tubelet.config import UserError, load_settings
from tubelet.copies.table import SCHEMA as COPIES
from tubelet.corpus.beside import beside
from tubelet.corpus.manifest import key_of, read_manifest, write_manifest
from tubelet.forgetting.config import ForgetConfig
from tubelet.forgetting.job import ForgetJob, ForgetSummary
from tubelet.inference.feature_table import features_of
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import PredictionSink
from tubelet.tracking import Tracker

GONE, STAYS = "v00000.mp4", "v00001.mp4"


def forget(*uris: str, manifest: str, tmp_path: Path, **more: Any) -> ForgetSummary:
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = {"uris": uris, "manifest": manifest, "tracking_uri": tracking, **more}
    return ForgetJob(load_settings(ForgetConfig, given)).run()


def mentions(folder: str, *words: str) -> list[str]:
    """Objects below ``folder`` that hold one of ``words``, in their name, bytes or cells."""
    found = []
    for info in storage.walk(folder):
        text = info.path.encode() + storage.read_bytes(info.uri)
        if info.path.endswith(".parquet"):
            filesystem, path = storage.filesystem(info.uri)
            text += str(pq.read_table(path, filesystem=filesystem).to_pylist()).encode()
        if any(word.encode() in text for word in words):
            found.append(info.path)
    return found


@pytest.fixture
def world(root: str, tmp_path: Path) -> dict[str, str]:
    """Three videos, their manifest with features, an output of labels, one of copies, locally or on S3."""
    videos, manifest = str(write_corpus(tmp_path / "videos", 3)), f"{root}/manifest"
    labels = put_text(
        str(tmp_path / "l.csv"), "path,label,split", *(f"v0000{n}.mp4,a,train" for n in range(3))
    )
    run_index(videos, manifest, labels=(labels,), duplicates="exact")
    rows = read_manifest(manifest).to_pylist()

    labelled, sampling = f"{root}/labels", {"model": "m", "sampling": "s"}
    sink = PredictionSink(OutputFiles(labelled), RowShape().schema())
    for row in rows:
        answer = {"window": 0, "status": "ok", "label": "a", "score": 0.5, **sampling}
        sink.add(table_of([{**{n: row[n] for n in ("key", "uri", "etag")}, **answer}], sink.schema))
    sink.close()
    storage.write_bytes(f"{labelled}/_review/page.html", rows[0]["key"].encode())

    sink = PredictionSink(
        OutputFiles(f"{features_of(manifest)}/0a1b"), RowShape(embedding="float32", embedding_dim=2).schema()
    )
    for row in rows:
        answer = {"window": 0, "status": "ok", "embedding": [0.5, 1.0], **sampling}
        sink.add(table_of([{**{n: row[n] for n in ("key", "uri", "etag")}, **answer}], sink.schema))
    sink.close()

    copies = f"{root}/copies"
    sink = PredictionSink(OutputFiles(f"{copies}/_copies"), COPIES)
    for row in rows:
        uri = f"{copies}/_videos/{row['key'][:2]}/{row['key']}-0123.mp4"
        storage.write_bytes(uri, b"a copy")
        made = {"window": 0, "status": "ok", "copy_uri": uri}
        sink.add(table_of([{**{n: row[n] for n in ("key", "uri", "etag")}, **made}], COPIES))
        row["origin_uri"], row["uri"] = row["uri"], uri
    sink.close()
    write_manifest(pa.Table.from_pylist(rows, schema=_with_origin(manifest)), copies)
    return {"videos": videos, "manifest": manifest, "labels": labelled, "copies": copies, "list": labels}


def _with_origin(manifest: str) -> pa.Schema:
    return read_manifest(manifest).schema.append(pa.field("origin_uri", pa.string()))


def test_nothing_is_left_and_nothing_comes_back(world: dict[str, str], tmp_path: Path) -> None:
    manifest, key = world["manifest"], key_of(GONE)
    with Tracker.start(
        f"sqlite:///{tmp_path / 'mlflow.db'}",
        "tubelet",
        "mine",
        tags={"tubelet.job": "train", "tubelet.manifest": manifest, "tubelet.out": "s3://b/run"},
        system_metrics=False,
    ):
        pass
    outputs = (world["labels"], world["copies"])
    summary = forget(f"{world['videos']}/{GONE}", manifest=manifest, tmp_path=tmp_path, out=outputs)
    assert (summary.forgotten, summary.trained, summary.copies, summary.pages) == (1, 1, 1, 1)
    assert summary.rows >= 5  # of the manifest, features, what was predicted, the copies, their manifest
    (model,) = summary.models
    assert (model["name"], model["out"]) == ("mine", "s3://b/run")

    for place in (manifest, features_of(manifest), *outputs):
        left = [name for name in mentions(place, GONE, key) if not name.endswith("forgotten.json")]
        assert left == []
        assert mentions(place, key_of(STAYS)), "what was not named stays"
    assert GONE not in storage.read_bytes(beside(manifest, "forgotten.json")).decode()

    again = run_index(world["videos"], manifest, update=True)
    assert (again.objects, again.skipped_by.get("forgotten")) == (2, 1)
    assert sorted(manifest_rows(manifest)) == [STAYS, "v00002.mp4"]
    # Named as it was, it is known, and there is nothing left to do.
    for name in (GONE, f"{world['videos']}/{GONE}", key):
        done = forget(name, manifest=manifest, tmp_path=tmp_path, out=outputs)
        assert (done.forgotten, done.rows, done.copies) == (1, 0, 0)


def test_what_is_not_there_is_said_before_anything_goes(world: dict[str, str], tmp_path: Path) -> None:
    manifest = world["manifest"]
    with pytest.raises(UserError, match=r"nowhere\.mp4 is not in .*\ngive the uri"):
        forget(GONE, "nowhere.mp4", manifest=manifest, tmp_path=tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        forget(GONE, manifest=manifest, tmp_path=tmp_path, out=(f"{manifest}-not",))
    assert GONE in manifest_rows(manifest)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_manifest_that_is_one_file(root: str, tmp_path: Path) -> None:
    """What lies beside it is gone through, and what is not there is no error."""
    videos, manifest = str(write_corpus(tmp_path / "videos", 2)), f"{root}/m.parquet"
    run_index(videos, manifest)
    summary = forget(GONE, manifest=manifest, tmp_path=tmp_path)
    assert (summary.forgotten, summary.rows) == (1, 1)
    assert [row["path"] for row in read_manifest(manifest).to_pylist()] == ["v00001.mp4"]
    run_index(videos, manifest, update=True)
    assert [row["path"] for row in read_manifest(manifest).to_pylist()] == ["v00001.mp4"]


def test_the_manifest_inside_an_output_forgets_too(world: dict[str, str], tmp_path: Path) -> None:
    """A job that was given the bucket looks at it again on its next run."""
    inside = f"{world['labels']}/_manifest"
    run_index(world["videos"], inside)
    forget(GONE, manifest=world["manifest"], tmp_path=tmp_path, out=(world["labels"],))
    run_index(world["videos"], inside, update=True)
    assert sorted(row["path"] for row in read_manifest(inside).to_pylist()) == ["v00001.mp4", "v00002.mp4"]


def test_one_version_is_not_what_forgets(world: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the manifest itself"):
        forget(GONE, manifest=f"{world['manifest']}@0123456789ab", tmp_path=tmp_path)

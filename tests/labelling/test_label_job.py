"""The job end to end: real videos, a real model, Ray, S3, MLflow."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest
from support import S3Bucket
from support.labelling import (
    CLASSES,
    assert_one_row_each,
    fitted_bundle,
    read_rows,
    read_with_duckdb,
    tiny_bundle,
    write_corpus,
    write_scenes,
    write_video,
)
from support.s3_proxy import Fault, Mode, s3_proxy
from tubelet import storage
from tubelet.config import UserError, load_settings
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.graph import Layout, TableRequests, inference_stream
from tubelet.inference.windows import Windows
from tubelet.inference.workers import DecodeJob
from tubelet.labelling.config import LabelConfig
from tubelet.labelling.job import LabelJob, Summary
from tubelet.storage import DiskFullError
from tubelet_jobs.common import review_page

pytestmark = pytest.mark.usefixtures("ray_cluster")

GIVEN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")  # which the command line takes from the environment
COUNT, BROKEN = 14, (3, 9)
Label = Callable[..., Summary]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), COUNT, BROKEN)
    write_video(folder / "a folder" / "ä <b>&.mp4", 99)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def label(tracking: str, model: Path) -> Label:
    """Runs a job."""

    def run(source: str | Path, out: str | Path, **settings: Any) -> Summary:
        given = {
            "source": str(source),
            "out": str(out),
            "models": (str(model),),
            "tracking_uri": tracking,
            "workers": 1,
            "review_limit": 0,
        }
        config = load_settings(LabelConfig, given | settings)
        page = review_page(limit=config.review_limit, workers=1) if config.review_limit else None
        return LabelJob(config).run(lambda: None, page)

    return run


def test_every_object_is_one_row_and_again_is_no_work(corpus: Path, tmp_path: Path, label: Label) -> None:
    summary = label(corpus, tmp_path / "out")
    rows = read_rows(str(tmp_path / "out"))
    assert_one_row_each(rows, COUNT + 1)
    errors = [row for row in rows if row["status"] == "error"]
    assert sorted(row["uri"][-10:] for row in errors) == ["v00003.mp4", "v00009.mp4"]
    assert all(row["error_code"] and row["error"] and row["label"] is None for row in errors)
    good = [row for row in rows if row["status"] == "ok"]
    assert all(row["label"] == row["topk_labels"][0] for row in good)
    assert all(sorted(row["topk_labels"]) == sorted(CLASSES) for row in good)
    assert all(abs(sum(row["topk_scores"]) - 1) < 1e-5 for row in good)
    assert len({row["label"] for row in good}) > 1
    assert (summary.objects, summary.ok, summary.errors, summary.already_done) == (15, 13, 2, 0)
    assert summary.videos_per_s > 0
    again = label(corpus, tmp_path / "out")
    assert (again.labelled, again.already_done, again.ok, again.errors) == (0, 15, 13, 2)
    assert read_rows(str(tmp_path / "out")) == rows


def test_predictors_apart_from_the_decoders_give_the_same_rows(
    corpus: Path, tmp_path: Path, label: Label
) -> None:
    label(corpus, tmp_path / "apart", predictors=1)
    label(corpus, tmp_path / "together")
    assert read_rows(str(tmp_path / "apart")) == read_rows(str(tmp_path / "together"))


def test_predictors_are_asked_for_on_gpus(model: Path) -> None:
    spec = ModelBundle.load(model).clip
    requests = TableRequests(pa.table({"request": pa.array([0], pa.int64())}))
    layout = Layout(decoders=1, decoder_cpus=0.5, predictors=2, gpus=0.5, task_rows=1, memory_bytes=1 << 20)
    stream = inference_stream(requests, DecodeJob((spec,)), list, layout, clips=1)
    assert "BlockPredictor" in str(stream)


def test_one_file_is_labelled_without_ray_as_on_it(tmp_path: Path, label: Label, model: Path) -> None:
    def refuse() -> None:
        raise AssertionError("Ray was started")

    file = write_video(tmp_path / "one.mp4", 7, frames=80)
    windows, page = Windows(window_s=1, stride_s=1), review_page(limit=5, workers=1)
    given = {"source": str(file), "models": (str(model),), "scores": True, "embeddings": "float32"}
    config = load_settings(LabelConfig, given | {"out": str(tmp_path / "here"), "windows": windows})
    here = LabelJob(config).run(refuse, page)
    there = label(file, tmp_path / "there", scores=True, embeddings="float32", windows=windows)
    rows = read_rows(str(tmp_path / "here"))
    assert len(rows) > 3
    assert rows == read_rows(str(tmp_path / "there"))
    assert (here.objects, here.ok, here.run_id) == (there.objects, there.ok, None)
    assert Path(str(here.review)).exists()
    assert LabelJob(config).run(refuse).already_done == len(rows)


def test_a_folder_of_few_files_is_labelled_without_ray_as_on_it(
    tmp_path: Path, label: Label, model: Path, tracking: str
) -> None:
    def started() -> None:
        raise RuntimeError("Ray was started")

    def job(**changes: Any) -> LabelJob:
        given = {"source": str(folder), "models": (str(model),), "tracking_uri": tracking}
        return LabelJob(load_settings(LabelConfig, given | {"out": str(tmp_path / "here")} | changes))

    folder = write_corpus(tmp_path / "few", 4, broken=[1])
    here = job().run(started)
    there = label(folder, tmp_path / "there")
    assert read_rows(str(tmp_path / "here")) == read_rows(str(tmp_path / "there"))
    assert (here.ok, here.errors) == (there.ok, there.errors) == (3, 1)
    assert here.run_id, "a folder's run is in MLflow, as on Ray"
    for number, changes in enumerate(({"views": (6, 1)}, {"workers": 1})):
        with pytest.raises(RuntimeError, match="Ray was started"):
            job(out=str(tmp_path / f"more{number}"), **changes).run(started)
    write_video(folder / "fifth.mp4", 9)
    with pytest.raises(RuntimeError, match="Ray was started"):
        job(out=str(tmp_path / "five")).run(started)


def test_one_file_that_is_no_video_is_a_row_with_a_reason(tmp_path: Path, model: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    given = {"source": str(tmp_path / "broken.mp4"), "models": (str(model),), "out": str(tmp_path / "out")}
    summary = LabelJob(load_settings(LabelConfig, given)).run(lambda: pytest.fail("Ray was started"))
    assert (summary.objects, summary.errors) == (1, 1)
    (row,) = read_rows(str(tmp_path / "out"))
    assert (row["status"], bool(row["error_code"])) == ("error", True)


def test_the_command_labels_one_file_without_the_heavy_imports(tmp_path: Path, model: Path) -> None:
    write_video(tmp_path / "one.mp4", 7)
    heavy = ("ray", "mlflow", "torch._dynamo", "matplotlib")
    script = (
        "import sys; from tubelet_jobs.cli import run; "
        f"status = run(['label', 'one.mp4', '--model', {str(model)!r}, '--out', 'out']); "
        f"print([name for name in {heavy} if name in sys.modules]); sys.exit(status)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in GIVEN}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary, imported = done.stdout.splitlines()
    assert (json.loads(summary)["ok"], imported) == (1, "[]")
    assert not (tmp_path / "mlflow.db").exists()


def test_new_and_changed_objects_are_labelled_and_nothing_else(tmp_path: Path, label: Label) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", 6), str(tmp_path / "out")
    label(corpus, out)
    before = {row["uri"]: row for row in read_rows(out)}
    write_video(corpus / "new.mp4", 50)
    write_video(corpus / "v00002.mp4", 51)
    summary = label(corpus, out)
    assert (summary.labelled, summary.already_done, summary.objects) == (2, 5, 7)
    after = read_rows(out)
    assert_one_row_each(after, 7)
    changed = {row["uri"] for row in after if row != before.get(row["uri"])}
    assert changed == {str(corpus / "new.mp4"), str(corpus / "v00002.mp4")}


def test_s3_gives_what_a_folder_gives(corpus: Path, tmp_path: Path, s3: S3Bucket, label: Label) -> None:
    storage.upload_dir(corpus, s3.uri + "/in")
    label(corpus, tmp_path / "out")
    summary = label(s3.uri + "/in", s3.uri + "/out")
    assert summary.objects == COUNT + 1
    local, remote = read_rows(str(tmp_path / "out")), read_rows(s3.uri + "/out")
    assert [row["key"] for row in local] == [row["key"] for row in remote]
    assert [row["label"] for row in local] == [row["label"] for row in remote]
    scores = [np.array([row["score"] or 0 for row in rows]) for rows in (local, remote)]
    assert np.allclose(*scores, atol=1e-6)
    hidden = [name for name in storage.list_names(s3.uri + "/out") if not name.startswith("_")]
    assert all(name.startswith("part-") for name in hidden)


def test_errors_of_the_store_are_tried_again_by_the_same_command(tmp_path: Path, label: Label) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", 4), str(tmp_path / "out")
    first = label(corpus, out)
    assert first.errors == 0
    manifest = out + "/_manifest"
    (corpus / "v00001.mp4").rename(tmp_path / "away.mp4")
    again = label(manifest, tmp_path / "other")
    assert again.errors == 1
    row = next(row for row in read_rows(str(tmp_path / "other")) if row["status"] == "error")
    assert row["error_code"] in {"not_found", "io_error"}
    assert (again.to_retry, row["attempts"]) == (1, 1)
    (tmp_path / "away.mp4").rename(corpus / "v00001.mp4")
    retried = label(manifest, tmp_path / "other")
    assert (retried.labelled, retried.errors, retried.ok, retried.to_retry) == (1, 0, 4, 0)
    rows = read_rows(str(tmp_path / "other"))
    assert_one_row_each(rows, 4)
    assert {row["attempts"] for row in rows} == {0}


def test_what_a_flaky_index_could_not_read_is_labelled(tmp_path: Path, s3: S3Bucket, label: Label) -> None:
    """A row of an outage goes to the decoders; what is no video gets no row."""
    corpus = write_corpus(tmp_path / "corpus", 4)
    (corpus / "v00000.txt").write_text("a sidecar")
    storage.upload_dir(corpus, f"{s3.uri}/in")
    with s3_proxy(s3.server) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        proxy.fault = Fault(Mode.OVERLOADED, match="v00001.mp4")
        made = index_corpus(IndexConfig(src=f"{s3.uri}/in", out=f"{s3.uri}/manifest", workers=1))
    assert (made.ok, made.to_retry, made.not_video) == (3, 1, 1)
    summary = label(f"{s3.uri}/manifest", tmp_path / "out")
    assert (summary.objects, summary.ok, summary.errors) == (4, 4, 0)
    assert_one_row_each(read_rows(str(tmp_path / "out")), 4)


def test_object_that_changed_since_the_manifest_is_noticed(tmp_path: Path, label: Label) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", 3), str(tmp_path / "out")
    label(corpus, out)
    write_video(corpus / "v00001.mp4", 77)
    label(out + "/_manifest", tmp_path / "other", max_error_rate=1.0)
    rows = read_rows(str(tmp_path / "other"))
    assert [row["error_code"] for row in rows if row["status"] == "error"] == ["changed"]


def test_single_file(tmp_path: Path, label: Label) -> None:
    video = write_video(tmp_path / "one.mp4", 1)
    assert label(video, tmp_path / "out").objects == 1
    assert_one_row_each(read_rows(str(tmp_path / "out")), 1)


def test_views_are_averaged(corpus: Path, tmp_path: Path, label: Label) -> None:
    label(corpus, tmp_path / "out", views=(1, 3))
    good = [row for row in read_rows(str(tmp_path / "out")) if row["status"] == "ok"]
    assert {row["views"] for row in good} == {3}
    assert {len(row["clip_times_s"]) for row in good} == {24}


def test_scores_embeddings_and_heads(corpus: Path, tmp_path: Path, label: Label) -> None:
    bundle = tiny_bundle(tmp_path / "heads", heads={"verb": 3, "noun": 6})
    label(corpus, tmp_path / "out", models=(str(bundle),), scores=True, embeddings="float16", topk=2)
    table = read_with_duckdb(str(tmp_path / "out"))
    good = [row for row in table.to_pylist() if row["status"] == "ok"]
    for row in good:
        assert len(row["scores"]) == 3
        assert len(row["scores_noun"]) == 6
        assert row["label_noun"] == f"noun-{int(np.argmax(row['scores_noun']))}"
        assert row["label"] == f"verb-{int(np.argmax(row['scores']))}"
        assert len(row["topk_labels"]) == 2
        assert len(row["embedding"]) == 64
    assert np.std([row["embedding"] for row in good]) > 0


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_export(corpus: Path, tmp_path: Path, label: Label, suffix: str) -> None:
    target = tmp_path / f"rows{suffix}"
    out = tmp_path / "out"
    label(corpus, out, scores=True, embeddings="float16", export=str(target))
    text = target.read_text("utf-8")
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
    wanted = read_rows(str(out))
    assert sorted(row["key"] for row in rows) == [row["key"] for row in wanted]
    good = next(row for row in rows if row["status"] == "ok")
    scores = good["scores"] if suffix == ".jsonl" else json.loads(good["scores"])
    assert abs(sum(scores) - 1) < 1e-5


def test_export_needs_a_name_that_tells_the_format(corpus: Path, tmp_path: Path, label: Label) -> None:
    with pytest.raises(UserError, match=r"\.jsonl or \.csv or"):
        label(corpus, tmp_path / "out", export="rows.txt")


def test_several_models_in_one_pass(corpus: Path, tmp_path: Path, model: Path, label: Label) -> None:
    other = tiny_bundle(tmp_path / "other", seed=5, frames=4)
    label(corpus, tmp_path / "alone", models=(str(other),))
    both = label(corpus, tmp_path / "both", models=(str(model), str(other)))
    assert len(both.models) == 2
    for name in both.models:
        assert_one_row_each(read_rows(f"{tmp_path}/both/{name}"), COUNT + 1)
    alone, beside = read_rows(f"{tmp_path}/alone"), read_rows(f"{tmp_path}/both/other")
    assert [row["label"] for row in alone] == [row["label"] for row in beside]
    assert np.allclose([row["score"] or 0 for row in alone], [row["score"] or 0 for row in beside], atol=1e-6)


def test_windows_and_their_intervals(tmp_path: Path, label: Label) -> None:
    corpus = tmp_path / "corpus"
    write_video(corpus / "long.mp4", 1, frames=60)
    write_video(corpus / "short.mp4", 2, frames=9)
    windows = {"window_s": 2.0, "stride_s": 1.0}
    summary = label(corpus, tmp_path / "out", windows=windows)
    rows = read_rows(str(tmp_path / "out"))
    long = [row for row in rows if row["uri"].endswith("long.mp4")]
    assert [(row["start_s"], row["end_s"]) for row in long] == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    assert all(row["start_s"] <= min(row["clip_times_s"]) for row in rows)
    assert all(max(row["clip_times_s"]) <= row["end_s"] + 1e-6 for row in rows)
    assert (summary.objects, len(rows)) == (2, 6)
    intervals = read_intervals(tmp_path / "out")
    ends = [row for row in intervals if row["uri"].endswith("long.mp4")]
    assert (ends[0]["start_s"], ends[-1]["end_s"]) == (0, 6)


def test_intervals_of_a_spliced_video_are_right_within_one_stride(tmp_path: Path, label: Label) -> None:
    seeds, stride_s = (1, 2, 5), 0.5
    scenes = [(1, 35), (5, 42), (2, 28), (1, 45)]  # at 10 frames a second
    write_scenes(tmp_path / "corpus" / "spliced.mp4", scenes)
    bundle = fitted_bundle(tmp_path / "model", seeds)
    windows = {"window_s": 2.0, "stride_s": stride_s}
    label(tmp_path / "corpus", tmp_path / "out", models=(str(bundle),), windows=windows)
    found = read_intervals(tmp_path / "out")
    assert [row["label"] for row in found] == [f"scene {seed}" for seed, _ in scenes]
    borders = np.cumsum([0, *[frames / 10 for _, frames in scenes]])
    for row, start_s, end_s in zip(found, borders[:-1], borders[1:], strict=True):
        assert abs(row["start_s"] - start_s) <= stride_s
        assert abs(row["end_s"] - end_s) <= stride_s


def read_intervals(out: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(out / "_intervals" / "intervals.parquet").to_pylist()
    return rows


def test_another_model_is_refused(corpus: Path, tmp_path: Path, label: Label) -> None:
    label(corpus, tmp_path / "out")
    other = tiny_bundle(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="--new-version"):
        label(corpus, tmp_path / "out", models=(str(other),))
    label(corpus, tmp_path / "out", models=(str(other),), new_version=True)
    rows = read_rows(str(tmp_path / "out"))
    assert_one_row_each(rows, COUNT + 1)
    assert len({row["model"] for row in rows}) == 1


def test_second_job_on_one_output_is_refused(corpus: Path, tmp_path: Path, label: Label) -> None:
    from tubelet.storage.lock import OutputLock

    with OutputLock(str(tmp_path / "out"), job="tubelet label"), pytest.raises(UserError, match="in use"):
        label(corpus, tmp_path / "out")


def test_a_corpus_that_is_broken_as_a_whole_ends_the_job(tmp_path: Path, label: Label) -> None:
    corpus = write_corpus(tmp_path / "corpus", 20, range(12))
    with pytest.raises(UserError, match=r"12 of the last 20 .*--max-error-rate 0.2: 12 "):
        label(corpus, tmp_path / "out")
    assert_one_row_each(read_rows(str(tmp_path / "out")), 20)


def test_run_in_mlflow_tells_the_figures(corpus: Path, tmp_path: Path, tracking: str, label: Label) -> None:
    import mlflow

    summary = label(corpus, tmp_path / "out", review_limit=2)
    client = mlflow.MlflowClient(tracking)
    run = client.get_run(summary.run_id or "")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["labelled"] == COUNT + 1
    assert run.data.metrics["errors"] == 2
    assert run.data.params["objects"] == str(COUNT + 1)
    names = {item.path for item in client.list_artifacts(summary.run_id or "")}
    assert {"summary.json", "errors.csv", "labels.csv", "figures", "review.html"} <= names
    assert run.data.tags["tubelet.review_page"] == summary.review == str(tmp_path / "out/_review/page.html")


def test_command_line(corpus: Path, tmp_path: Path, model: Path) -> None:
    """Only the parts that need no Ray of their own: usage errors and --help."""
    tubelet = str(Path(sys.executable).with_name("tubelet"))
    command = [tubelet, "label", str(corpus), "--model", str(model), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--views", "many"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "views 'many': write temporal clips x spatial crops, for example 4x3" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_full_disk_costs_nothing_and_the_same_command_goes_on(
    corpus: Path, tmp_path: Path, label: Label
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        with pytest.raises(
            DiskFullError, match=r"^no room to write .*: free some on that disk, then run the"
        ):
            label(corpus, disk / "p")
        assert not [path for path in disk.rglob("*") if path.is_file() and not path.stat().st_size]
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        label(corpus, disk / "p")
        assert_one_row_each(read_rows(str(disk / "p")), COUNT + 1)
        assert not [path.name for path in disk.rglob(".*") if path.is_file()]
        assert not (disk / "p" / "_lock").exists()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_deleted_experiment_ends_the_job_at_its_start(
    corpus: Path, tmp_path: Path, label: Label, tracking: str
) -> None:
    client = mlflow.MlflowClient(tracking)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match=r"'gone' at .* is deleted\nrestore it with"):
        label(corpus, tmp_path / "out", experiment="gone")
    assert not (tmp_path / "out").exists(), "nothing is left, no lock, plan or manifest either"

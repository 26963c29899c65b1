"""What an earlier version made lives on: manifest, training, model, labels (tests/golden/v0_1)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import S3Bucket
from support.labelling import assert_one_row_each, read_rows, write_video
from support.training import Run, run_rank
from tubelet import storage
from tubelet._version import SCHEMA_KEY, SCHEMA_VERSION
from tubelet.config import UserError
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import made_from, read_manifest
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.output import OutputFiles
from tubelet.labelling.job import LabelConfig, LabelJob, Summary
from tubelet.review.page import ReviewConfig, review
from tubelet.storage.local_s3 import LocalS3
from tubelet.tracking.registry import _as_default, _register
from tubelet.vivit import load_model

EARLIER = Path(__file__).parents[1] / "golden/v0_1"
# Where it was made, which its rows name.
VIDEOS = "s3://tubelet-test/v0_1/videos"
LABELS = {f"{label}/{i}.mp4": label for i in range(8) for label in [("left", "right")[i % 2]]}
RECIPE = (
    "model=tiny-8x2-model1",
    "model_options={dim: 8, layers: 1, heads: 2, mlp: 16}",
    "frames=4",
    "stride=1",
    "size=32",
    "short_side=36",
    "batch=4",
    "max_steps=4",
    "warmup_steps=1",
    "checkpoint_every=2",
    "optimiser.name=sgd",
    "workers=1",
)


@pytest.fixture(scope="module", autouse=True)
def _videos(s3_server: LocalS3) -> None:
    storage.upload_dir(EARLIER / "videos", VIDEOS)


@pytest.fixture
def data(s3: S3Bucket) -> str:
    """A copy of its own of all that the earlier version made."""
    for name in ("manifest", "predictions", "run"):
        storage.upload_dir(EARLIER / name, f"{s3.uri}/{name}")
    return s3.uri


def test_manifest_is_read_and_updated_without_opening_a_video(data: str) -> None:
    earlier = read_manifest(f"{data}/manifest")
    rows = {row["path"]: row for row in earlier.to_pylist()}
    assert {path: row["label"] for path, row in rows.items() if row["label"]} == LABELS
    assert [path for path, row in rows.items() if row["status"] == "error"] == ["broken.mp4"]
    assert {row["split"] for row in rows.values()} == {"train", "val", "test"}
    assert made_from(f"{data}/manifest")["src"] == VIDEOS
    summary = index_corpus(IndexConfig(src=VIDEOS, out=f"{data}/manifest", update=True))
    assert (summary.objects, summary.ok, summary.probed) == (9, 8, 0)
    again = {row["path"]: row for row in read_manifest(f"{data}/manifest").to_pylist()}
    for path, row in rows.items():
        assert {name: again[path][name] for name in row} == row


def test_training_goes_on_from_its_checkpoint_to_the_weights_it_led_to(data: str, tmp_path: Path) -> None:
    storage.delete(f"{data}/run/model.safetensors")
    run_rank(0, 1, f"{data}/manifest", Run(f"{data}/run", overrides=RECIPE))
    storage.download_file(
        f"{data}/run/checkpoints/step-00000004/model.safetensors", tmp_path / "model.safetensors"
    )
    found = load_model(tmp_path / "model.safetensors")[0].state_dict()
    wanted = load_model(EARLIER / "run/model.safetensors")[0].state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_model_is_the_one_that_its_rows_name(data: str) -> None:
    bundle = ModelBundle.load(f"{data}/run")
    assert bundle.labels == {"label": ["left", "right"]}
    assert {row["model"] for row in read_rows(f"{data}/predictions")} == {bundle.identity}


def test_labelling_goes_on_where_it_was(data: str, tmp_path: Path, ray_cluster: None) -> None:
    rows = read_rows(f"{data}/predictions")
    assert_one_row_each(rows, 9)
    again = _label(data, tmp_path)
    assert (again.labelled, again.already_done, again.ok, again.errors) == (0, 9, 8, 1)
    assert read_rows(f"{data}/predictions") == rows
    new = storage.join(VIDEOS, "new.mp4")
    storage.upload_file(write_video(tmp_path / "new.mp4", 1), new)
    try:
        more = _label(data, tmp_path)
    finally:
        storage.delete(new)
    assert (more.labelled, more.already_done, more.ok) == (1, 9, 9)
    every = read_rows(f"{data}/predictions")
    assert_one_row_each(every, 10)
    assert [row for row in every if row["uri"] != new] == rows


def _label(data: str, folder: Path) -> Summary:
    config = LabelConfig(
        source=VIDEOS,
        out=f"{data}/predictions",
        models=(f"{data}/run",),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        workers=1,
        review_limit=0,
    )
    return LabelJob(config).run(lambda: None)


def test_predictions_are_reviewed(data: str, tmp_path: Path) -> None:
    made = review(ReviewConfig(predictions=f"{data}/predictions", out=str(tmp_path / "page.html")))
    page = (tmp_path / "page.html").read_text("utf-8")
    assert made.out.endswith("page.html")
    assert all(path in page for path in LABELS)


def test_what_is_written_names_its_schema(data: str, tmp_path: Path) -> None:
    """Files of the earlier version name none: that is version 1."""
    assert SCHEMA_KEY not in _head(EARLIER / "run/model.safetensors")
    assert SCHEMA_KEY.encode() not in pq.read_schema(EARLIER / "manifest/manifest.parquet").metadata
    index_corpus(IndexConfig(src=VIDEOS, out=f"{tmp_path}/manifest", update=False))
    metadata = pq.read_schema(next((tmp_path / "manifest").glob("part-*.parquet"))).metadata
    assert metadata[SCHEMA_KEY.encode()] == str(SCHEMA_VERSION).encode()
    path = ModelBundle.load(f"{data}/run").save(tmp_path / "model")
    assert _head(path)[SCHEMA_KEY] == str(SCHEMA_VERSION)


@pytest.mark.parametrize("version", [str(SCHEMA_VERSION + 1), "two"])
def test_newer_schema_is_refused_by_name(tmp_path: Path, version: str) -> None:
    said = f"has schema version {version}, and tubelet .* reads versions up to {SCHEMA_VERSION}"
    manifest, part = tmp_path / "manifest.parquet", tmp_path / "out/part-00000000.parquet"
    part.parent.mkdir()
    for target, source in ((manifest, "manifest/manifest"), (part, "predictions/part-00000000")):
        table = pq.read_table(EARLIER / f"{source}.parquet")
        pq.write_table(table.replace_schema_metadata({SCHEMA_KEY: version}), target)
    with pytest.raises(UserError, match=f"^{manifest} {said}.*$"):
        read_manifest(manifest)
    with pytest.raises(UserError, match=f"^{part} {said}.*$"):
        OutputFiles(str(part.parent)).read_table(part.name)
    model = tmp_path / "model.safetensors"
    with safe_open(EARLIER / "run/model.safetensors", framework="pt") as file:
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, model, metadata={**file.metadata(), SCHEMA_KEY: version})
    with pytest.raises(UserError, match=f"^{model} {said}.*$"):
        ModelBundle.load(model)


def _head(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_model_registered_by_the_earlier_version_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it logged beside the weights is code of its own, which nothing here reads."""
    monkeypatch.setenv("TUBELET_CACHE", str(tmp_path / "cache"))
    logged = tmp_path / "logged"
    (logged / "artifacts/weights").mkdir(parents=True)
    (logged / "code/pipeline").mkdir(parents=True)
    shutil.copyfile(EARLIER / "run/model.safetensors", logged / "artifacts/weights/model.safetensors")
    for name in ("serving.py", "code/pipeline/__init__.py"):
        (logged / name).write_text("raise ImportError('code of an earlier version')\n", "utf-8")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("earlier", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment)
    model = client.create_logged_model(experiment, name="moves", source_run_id=run.info.run_id)
    client.log_model_artifacts(model.model_id, str(logged))
    with _as_default(uri):
        _register(client, "moves", model.model_id, None, "")
    bundle = ModelBundle.load("models:/moves/1", uri)
    assert bundle.labels == {"label": ["left", "right"]}
    assert bundle.identity == "models:/moves/1"

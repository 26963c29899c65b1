"""One real fit on the session's Ray (two ranks, decode workers, S3, MLflow), and many questions to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
import pytest
from support.training import RECIPE, moving_square, write_corpus, write_video
from tubelet import storage
from tubelet.inference.bundle import ModelBundle
from tubelet.storage import StorageOptions
from tubelet.storage.local_s3 import LocalS3
from tubelet.training.build import initial_model
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.fit import fit
from tubelet.training.prepare import prepare
from tubelet.training.request import Request
from tubelet_jobs.recipes import load_recipe

STEPS = 6


@dataclass(frozen=True)
class Fit:
    request: Request
    summary: dict[str, Any]
    client: Any


@pytest.fixture(scope="module")
def done(s3_server: LocalS3, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    folder = tmp_path_factory.mktemp("fit")
    manifest = write_corpus(folder, {"train": 10, "val": 4}, broken=[3])
    write_video(folder / "videos/train/left 00.mp4", moving_square(1, 0, frames=12))  # since it was indexed
    tracking_uri = f"sqlite:///{folder}/mlflow.db"
    overrides = [*RECIPE, "workers=2", "decode_workers=2", "retain=2", "evaluation.every=4", "batch=7"]
    overrides += ["max_error_rate=0.5"]
    out = f"s3://tubelet-test/{uuid4().hex[:12]}/run ä"
    request = Request(
        recipe=load_recipe("tiny", overrides),
        manifest=manifest,
        out=out,
        tracking_uri=tracking_uri,
        options=StorageOptions(anonymous=True),  # of public videos: the store here takes no unsigned writes
    )
    prepared = prepare(request)
    initial_model(prepared)
    return Fit(request, fit(prepared), mlflow.MlflowClient(tracking_uri, tracking_uri))


def test_summary(done: Fit) -> None:
    summary = done.summary
    assert summary["steps"] == STEPS
    assert summary["failed_clips"] > 0
    assert summary["failed_videos"] == 2, "the broken video was met, and the one that was replaced"
    assert 0 < summary["loss"] < 2
    assert 0 <= summary["data_stall"] <= 1
    assert 0 <= summary["val_top1"] <= 1
    assert summary["val_failed_videos"] == 0
    assert summary["restarts"] == 0


def test_output_is_a_model_and_its_checkpoints(done: Fit) -> None:
    out = done.request.out
    bundle = ModelBundle.load(out)
    assert bundle.labels == {"label": ["left", "right"]}
    assert (bundle.clip.frames, bundle.clip.size) == (8, 32)
    assert bundle.metadata["run_id"] == done.summary["run_id"]
    assert bundle.metadata["step"] == STEPS
    visible = [name for name in storage.list_names(out) if not name.startswith("_")]
    assert visible == ["checkpoints", "model.safetensors"]
    store = CheckpointStore(out)
    # The newest two, and the best where it is neither.
    assert set(store.steps()) == {4, 6, done.summary["best_step"]}
    assert ModelBundle.load(store.uri(6)).metadata["best"]["step"] == done.summary["best_step"]


def test_every_step_is_logged_once(done: Fit) -> None:
    for name in ("loss", "lr", "grad_norm", "clips_per_s", "data_stall", "mfu", "accuracy"):
        history = done.client.get_metric_history(done.summary["run_id"], f"train/{name}")
        assert [point.step for point in history] == list(range(1, STEPS + 1)), name
    validated = done.client.get_metric_history(done.summary["run_id"], "val/top1")
    assert [point.step for point in validated] == [4, 6]
    rates = [p.value for p in done.client.get_metric_history(done.summary["run_id"], "train/lr")]
    assert rates[0] == 0, "the first update of a warm-up has a learning rate of 0"
    assert rates[2] == max(rates)


def test_run_says_what_made_it(done: Fit) -> None:
    run = done.client.get_run(done.summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["batch"] == "7"
    assert run.data.tags["tubelet.data_fingerprint"]
    manifest, _, version = run.data.tags["tubelet.manifest"].rpartition("@")
    assert manifest == done.request.manifest
    assert version, "and which version of it"
    assert run.info.run_name.split()[:2] == ["train", "model2"]
    assert "labelled videos per split" in run.data.tags["mlflow.note.content"]
    files = {file.path for file in done.client.list_artifacts(done.summary["run_id"])}
    assert files >= {"recipe.yaml", "failed_videos.tsv", "model_card.md"}
    name, version = done.summary["model_name"], done.summary["model_version"]
    assert str(done.client.get_model_version_by_alias(name, "final").version) == version
    best = done.client.get_model_version_by_alias(name, "best")
    assert str(best.version) == done.summary["best_version"]
    for part in ("## Data", done.request.manifest, "## Recipe", "from scratch", "| right |", "## Limits"):
        assert part in best.description, best.description
    assert f"models:/{name}/VERSION" in done.client.get_registered_model(name).description


def test_video_that_was_replaced_since_the_index_is_not_learned_from(done: Fit, tmp_path: Path) -> None:
    """Its label may be wrong by now: a row of weight 0 with its reason."""
    name = done.client.download_artifacts(done.summary["run_id"], "failed_videos.tsv", str(tmp_path))
    rows = [line.split("\t") for line in Path(name).read_text("utf-8").splitlines()[1:]]
    assert {Path(uri).name: code for uri, code, _ in rows} == {
        "right 03.mp4": "open_error",
        "left 00.mp4": "changed",
    }


def test_finished_run_is_published_again_without_training(done: Fit, tmp_path: Path) -> None:
    """A driver that died between the last checkpoint and the final model has only that left to do."""
    before = ModelBundle.load(done.request.out).identity
    storage.delete(storage.join(done.request.out, "model.safetensors"))
    again = prepare(
        Request(
            recipe=done.request.recipe,
            manifest=done.request.manifest,
            out=done.request.out,
            resume=True,
            tracking_uri=done.request.tracking_uri,
        )
    )
    assert initial_model(again) == ""
    summary = fit(again)
    assert summary["run_id"] == done.summary["run_id"]
    assert ModelBundle.load(done.request.out).identity == before
    history = done.client.get_metric_history(done.summary["run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))

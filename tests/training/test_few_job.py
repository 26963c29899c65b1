"""`--recipe frozen` from videos to a model, on the session's Ray: one run, and many questions to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.training import write_corpus
from support.vivit import randomised
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.corpus.manifest import read_manifest
from tubelet.evaluation.config import EvaluateConfig
from tubelet.evaluation.evaluate import evaluate_model
from tubelet.inference.bundle import ModelBundle
from tubelet.training.build import initial_model
from tubelet.training.default import few_labels
from tubelet.training.few import job
from tubelet.training.few.candidates import Candidate
from tubelet.training.few.choose import Choice, choose
from tubelet.training.few.curve_job import CurveJob, lines
from tubelet.training.few.folds import Folds
from tubelet.training.few.job import fit_few
from tubelet.training.few.task import Task
from tubelet.training.prepare import prepare
from tubelet.training.request import Request
from tubelet.vivit import ViViT, ViViTConfig
from tubelet_jobs.recipes import load_recipe

QUICK = ("size=32", "short_side=32", "frames=4", "selection.folds=3", "repeats=2", "probe_epochs=1")
VIDEOS = {"train": 14, "val": 4}


def never() -> None:
    raise AssertionError("nothing was to be computed on the cluster")


@dataclass(frozen=True)
class Fit:
    request: Request
    summary: dict[str, Any]
    said: list[str]
    client: Any


def image_model(folder: Path) -> str:
    """An encoder of single frames, as weights to start from."""
    config = ViViTConfig.preset("tiny-8x1-average", classes=2, frames=4)
    torch.manual_seed(0)
    clip = ClipSpec(frames=4, stride=None, size=32, tubelet=config.tubelet)
    ModelBundle(randomised(ViViT(config)).eval(), {"label": ["x", "y"]}, clip).save(folder)
    return str(folder)


def request(folder: Path, manifest: str, *overrides: str, **changes: Any) -> Request:
    given = {
        "recipe": load_recipe("frozen", [*QUICK, *overrides]),
        "manifest": manifest,
        "out": str(folder / "few.out"),  # MLflow takes no dot in a name
        "init": str(folder / "weights"),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
    }
    return Request(**(given | changes))


def run(asked: Request, start_ray: Any = lambda: None) -> tuple[dict[str, Any], list[str]]:
    prepared = prepare(asked)
    report = initial_model(prepared)
    said: list[str] = []
    return fit_few(prepared, report, start_ray, said.append), said


@pytest.fixture(scope="module")
def done(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    folder = tmp_path_factory.mktemp("few")
    manifest = write_corpus(folder, VIDEOS, broken=[3], shaded=True)
    image_model(folder / "weights")
    asked = request(folder, manifest)
    summary, said = run(asked)
    uri = asked.tracking_uri
    return Fit(asked, summary, said, mlflow.MlflowClient(uri, uri))


def test_summary(done: Fit) -> None:
    summary = done.summary
    assert (summary["clips"], summary["failed_videos"]) == (13, 1), "the broken video was met"
    assert 0 <= summary["cv_top1_low"] <= summary["cv_top1"] <= summary["cv_top1_high"] <= 1
    assert 0 <= summary["cv_top1_corrected"] <= 1
    assert 0 <= summary["val_top1"] <= 1
    assert summary["pixels_s"] == 0, "without a GPU nothing learns from pixels unasked"
    assert "chosen by cross-validation on the training split" in "\n".join(done.said)


def test_model_is_one_like_any_other(done: Fit) -> None:
    bundle = ModelBundle.load(done.request.out)
    assert bundle.labels == {"label": ["left", "right"]}
    assert bundle.metadata["selection"]["candidate"] == done.summary["chosen"]
    found = evaluate_model(bundle, read_manifest(done.request.manifest), "val")
    assert found.ok == VIDEOS["val"]
    # From pixels, what the run said from features.
    assert found.scores["top1"] == pytest.approx(done.summary["val_top1"])
    version = done.client.get_model_version_by_alias("few-out", "final")
    assert version.run_id == done.summary["run_id"]


def test_table_of_candidates_in_the_run(done: Fit) -> None:
    run_id = done.summary["run_id"]
    path = done.client.download_artifacts(run_id, "candidates.json")
    table = json.loads(Path(path).read_text("utf-8"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    families = {row["family"] for row in rows}
    assert families >= {"frame", "linear", "attention", "temporal"}
    assert [row["candidate"] for row in rows if row["chosen"]] == [done.summary["chosen"]]
    assert all(0 <= row["low"] <= row["high"] <= 1 for row in rows)
    assert {row["folds"] for row in rows} == {6, 3}
    tags = done.client.get_run(run_id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "candidates.json", "type": "table"}]


def test_out_of_fold_predictions(done: Fit) -> None:
    table = pq.read_table(f"{done.request.out}/_oof/part-00000.parquet")
    repeats = len(set(table["repeat"].to_pylist()))
    assert len(table) == repeats * done.summary["clips"]
    assert set(table["fold"].to_pylist()) == {0, 1, 2}
    assert set(table["label_true"].to_pylist()) == {"left", "right"}
    assert np.array(table["logits"].to_pylist()).shape == (len(table), 2)
    right = np.mean(
        [a == b for a, b in zip(*(table[c].to_pylist() for c in ("label", "label_true")), strict=True)]
    )
    assert right == pytest.approx(done.summary["cv_top1"])


def test_second_run_opens_no_video_and_chooses_the_same(done: Fit, tmp_path: Path) -> None:
    """Other labels, other heads, or a killed driver: the features are there."""
    asked = done.request.model_copy(
        update={
            "out": str(tmp_path / "again"),
            "recipe": load_recipe("frozen", [*QUICK, "scratch_s=0", "probe_epochs=0"]),
        }
    )
    summary, _ = run(asked, never)
    assert summary["clips"] == done.summary["clips"]
    resumed, _ = run(asked.model_copy(update={"resume": True}), never)
    assert resumed["chosen"] == summary["chosen"]
    assert resumed["run_id"] == summary["run_id"]


def test_learning_curve_of_the_model_opens_no_video(done: Fit, tmp_path: Path) -> None:
    config = EvaluateConfig(
        model=done.request.out,
        manifest=done.request.manifest,
        tracking_uri=done.request.tracking_uri,
        out=str(tmp_path / "curve"),
        learning_curve=True,
    )
    curve, summary = CurveJob(config).run(never)
    assert summary["ok"] == done.summary["clips"]
    assert [point.labels for point in curve.points] == [5, 7]
    assert "too few points" in "\n".join(lines(curve))
    assert (
        json.loads((tmp_path / "curve" / "learning_curve.json").read_text("utf-8"))["curve"] == curve.rows()
    )
    with pytest.raises(UserError, match="exists and is no learning curve"):
        CurveJob(config.model_copy(update={"out": done.request.out}))


@pytest.mark.slow
def test_model_from_scratch_is_compared_and_trained_by_steps(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_corpus(tmp_path, VIDEOS, broken=[3])
    image_model(tmp_path / "weights")
    scratch = load_recipe("tiny", ["frames=4", "batch=4", "workers=1", "model_options={temporal_layers: 1}"])
    asked = request(
        tmp_path, manifest, "probe_epochs=0", "scratch_s=6000", "scratch_steps=3", scratch=scratch
    )
    chosen = []

    def only_scratch(found: list[Candidate], task: Task, folds: Folds, *, seed: int) -> Choice:
        chosen.append(choose(found, task, folds, seed=seed).rows(task))
        return choose([c for c in found if c.family == "scratch"], task, folds, seed=seed)

    monkeypatch.setattr(job, "choose", only_scratch)
    summary, _ = run(asked)
    rows = [row for row in chosen[0] if row["family"] == "scratch"]
    assert [row["folds"] for row in rows] == [3]
    assert summary["steps"] == 3
    assert 0 <= summary["val_top1"] <= 1
    assert ModelBundle.load(asked.out).model.config.variant == "model2"
    # What is done is not chosen, nor trained, again.
    monkeypatch.setattr(job, "choose", None)
    again, _ = run(asked.model_copy(update={"resume": True}))
    assert again["run_id"] == summary["run_id"]


def test_everything_fine_tuned_is_compared_and_trained_by_steps(
    done: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("probe_epochs=0", "finetune=true", "finetune_steps=2", "selection.repeats=1", "workers=1")
    init = done.request.init
    asked = request(tmp_path, done.request.manifest, *overrides, init=init)
    tables = []

    def only_finetuned(found: list[Candidate], task: Task, folds: Folds, *, seed: int) -> Choice:
        tables.append(choose(found, task, folds, seed=seed).rows(task))
        return choose([c for c in found if c.family == "finetune"], task, folds, seed=seed)

    monkeypatch.setattr(job, "choose", only_finetuned)
    summary, said = run(asked)
    row = next(row for row in tables[0] if row["family"] == "finetune")
    assert row["folds"] == 3
    assert row["candidate"] == "fine-tuned, average, 2 steps"
    assert len(tables[0]) > 1, "it is one candidate of several"
    assert any("fine-tuned" in line and line.startswith("*") for line in said)
    assert summary["steps"] == 2
    # Weights of the image model, moved a little; nothing of it was kept as it was, nothing drawn anew.
    before = ModelBundle.load(str(init)).model.state_dict()
    after = ModelBundle.load(asked.out).model.state_dict()
    blocks = [name for name in before if name.startswith("encoder") and before[name].ndim > 1]
    assert blocks
    for name in blocks:
        moved = (after[name] - before[name]).norm() / before[name].norm()
        assert 0 < moved < 0.05, name


def test_what_a_frozen_encoder_cannot_be(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, {"train": 4})
    config = ViViTConfig.preset("tiny-8x2-model2", classes=2)
    clip = ClipSpec(frames=8, stride=None, size=32, tubelet=config.tubelet)
    ModelBundle(ViViT(config), {"label": ["x", "y"]}, clip).save(tmp_path / "weights")
    with pytest.raises(UserError, match=r"several frames at once.*image ViT"):
        prepare(request(tmp_path, manifest))
    with pytest.raises(UserError, match="takes its size from --init"):
        prepare(request(tmp_path, manifest, init=None))


def test_default_recipe_of_few_labels(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, {"train": 4})
    image_model(tmp_path / "weights")
    line = few_labels(load_recipe("frozen"), request(tmp_path, manifest))
    assert line is not None
    assert "4 labelled clips" in line
    assert "--recipe frozen" in line
    assert few_labels(load_recipe("frozen", ["few=4"]), request(tmp_path, manifest)) is None

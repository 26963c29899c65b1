"""Evaluation: every video once, the mean of its views, failures counted, a run in MLflow."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.training import write_corpus
from support.vivit import randomised
from tubelet import storage
from tubelet.clips import ClipDecoder, ClipSpec
from tubelet.config import UserError, load_settings
from tubelet.corpus.manifest import read_manifest, write_manifest
from tubelet.corpus.selection import select
from tubelet.evaluation.ablation import ablate
from tubelet.evaluation.evaluate import EvaluationConfig, evaluate_model
from tubelet.inference.bundle import ModelBundle
from tubelet.vivit import ViViT, ViViTConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPEC = ClipSpec(frames=8, stride=1, size=32, short_side=36, tubelet=(2, 8, 8))
VIEWS = (2, 3)


def make_bundle(labels: dict[str, list[str]], *, multilabel: bool = False) -> ModelBundle:
    sizes = {head: len(names) for head, names in labels.items()}
    heads = {"classes": sizes["label"]} if "label" in sizes else {"heads_classes": sizes}
    model = randomised(ViViT(ViViTConfig.preset("tiny-8x2-model1", **heads)))  # type: ignore[arg-type]
    return ModelBundle(model, labels, SPEC, multilabel)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """20 videos, two of which no decoder can read."""
    return read_manifest(
        write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 20, "val": 2}, broken=(3, 8))
    )


def with_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    kind = pa.list_(pa.string()) if isinstance(values[0], list) else pa.string()
    place = table.column_names.index(name) if name in table.column_names else None
    column = pa.array(values, kind)
    return table.append_column(name, column) if place is None else table.set_column(place, name, column)


def test_every_video_once_with_the_mean_of_its_views(manifest: pa.Table) -> None:
    bundle = make_bundle({"label": ["left", "other", "right"]})
    seen: list[tuple[int, int]] = []
    config = EvaluationConfig(views=VIEWS, batch=5, workers=2)
    found = evaluate_model(bundle, manifest, "train", config, lambda done, bad: seen.append((done, bad)))
    assert (found.objects, found.ok, found.errors) == (20, 18, 2)
    assert (sum(done for done, _ in seen), sum(bad for _, bad in seen)) == (20, 2)
    rows = {row["key"]: row for row in found.rows}
    wanted = select(manifest, "train").to_pylist()
    assert set(rows) == {row["key"] for row in wanted}
    decoder = ClipDecoder(SPEC, views=VIEWS)
    right = []
    for row in wanted:
        got = rows[row["key"]]
        assert got["label_true"] == row["label"]
        batch = decoder({name: np.array([row[name]], object) for name in ("key", "uri", "etag", "size")})
        if batch["error_code"][0]:
            assert got["status"] == "error"
            assert got["error_code"] == batch["error_code"][0]
            assert got["label"] is None
            continue
        with torch.inference_mode():
            logits = bundle.model(torch.from_numpy(batch["tubelets"][0])).mean(0)
        scores = torch.softmax(logits, -1)
        assert got["score"] == pytest.approx(float(scores.max()), abs=1e-5)
        assert got["label"] == bundle.labels["label"][int(scores.argmax())]
        assert got["views"] == 6
        assert len(got["clip_times_s"]) == 6 * SPEC.frames
        right.append(got["label"] == row["label"])
    decoder.close()
    assert found.scores["top1"] == pytest.approx(np.mean(right))
    low, high = found.intervals["top1"]
    assert low <= found.scores["top1"] <= high
    mistakes = found.mistakes(3)
    assert [row["correct"] for row in mistakes] == [False] * len(mistakes)
    assert [row["score"] for row in mistakes] == sorted((row["score"] for row in mistakes), reverse=True)


def test_ablation_changes_what_the_model_sees(manifest: pa.Table) -> None:
    bundle = make_bundle({"label": ["left", "other", "right"]})
    found = evaluate_model(bundle, manifest, "val", EvaluationConfig(workers=1, ablation="one-frame", seed=3))
    rows = {row["key"]: row for row in found.rows}
    decoder = ClipDecoder(SPEC)
    for row in select(manifest, "val").to_pylist():
        batch = decoder({name: np.array([row[name]], object) for name in ("key", "uri", "etag", "size")})
        seen = ablate(batch["tubelets"][0], row["key"], "one-frame", SPEC, seed=3)
        with torch.inference_mode():
            whole, still = (bundle.model(torch.from_numpy(t)).mean(0) for t in (batch["tubelets"][0], seen))
        wanted, other = (float(torch.softmax(logits, -1).max()) for logits in (still, whole))
        assert rows[row["key"]]["score"] == pytest.approx(wanted, abs=1e-5)
        assert abs(wanted - other) > 1e-4
    decoder.close()


def test_labels_the_model_does_not_know_are_refused_before_work(manifest: pa.Table) -> None:
    with pytest.raises(UserError, match=r"split 'train' has 1 labels .*such as \['right'\]"):
        evaluate_model(make_bundle({"label": ["left", "up"]}), manifest, "train")
    with pytest.raises(UserError, match=r"no labelled videos in split 'test'"):
        evaluate_model(make_bundle({"label": ["left", "right"]}), manifest, "test")


def test_too_many_failures_are_an_error(manifest: pa.Table) -> None:
    config = EvaluationConfig(max_error_rate=0.05, workers=2)
    with pytest.raises(UserError, match=r"2 of the last 20 videos failed, .*--max-error-rate 0\.05: 2 "):
        evaluate_model(make_bundle({"label": ["left", "right"]}), manifest, "train", config)


def test_two_heads_and_their_joint_accuracy(manifest: pa.Table) -> None:
    labels = select(manifest)["label"].to_pylist()
    table = with_column(manifest, "label_noun", [f"n{i % 3}" for i in range(len(manifest))])
    table = with_column(table, "label_verb", manifest["label"].to_pylist())
    assert len(labels) == len(table)
    bundle = make_bundle({"noun": ["n0", "n1", "n2"], "verb": ["left", "right"]})
    found = evaluate_model(bundle, table, "val", EvaluationConfig(workers=1))
    row = found.rows[0]
    assert {"label_true", "label", "label_true_verb", "label_verb", "score_verb"} <= set(row)
    both = [r["label"] == r["label_true"] and r["label_verb"] == r["label_true_verb"] for r in found.rows]
    assert found.scores["action_top1"] == pytest.approx(np.mean(both))
    assert [r["correct"] for r in found.rows] == both
    assert set(found.reports) == {"noun", "verb"}
    assert {"noun/top1", "verb/map", "action_top5"} <= set(found.scores)


def test_several_labels_a_video(manifest: pa.Table) -> None:
    lists = [[label, "any"] for label in manifest["label"].to_pylist()]
    table = with_column(manifest, "label", lists)
    bundle = make_bundle({"label": ["any", "left", "right"]}, multilabel=True)
    found = evaluate_model(bundle, table, "train", EvaluationConfig(workers=2))
    assert 0 < found.scores["map"] <= 1
    assert found.rows[0]["label_true"] == ", ".join(lists[0])
    assert found.reports["label"].per_class[0]["videos"] == 18


def test_the_job_writes_tables_figures_and_a_linked_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tubelet_jobs.evaluate import EvaluateOptions, command

    manifest = write_corpus(tmp_path / "corpus", {"train": 4, "test": 8})
    table = read_manifest(manifest)  # with the etags that an index would have found
    found = [storage.stat(uri) for uri in table["uri"].to_pylist()]
    write_manifest(with_column(table, "etag", [info and info.etag for info in found]), manifest)
    make_bundle({"label": ["left", "right"]}).save(tmp_path / "model")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    out = tmp_path / "evaluation"
    given = {"model": str(tmp_path / "model"), "manifest": manifest, "tracking_uri": uri}

    def evaluate() -> dict[str, object]:
        command(load_settings(EvaluateOptions, given | {"views": "1x1", "out": str(out), "workers": 2}))
        summary: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return summary

    summary = evaluate()
    assert (summary["objects"], summary["errors"]) == (8, 0)
    scores = json.loads((out / "metrics.json").read_text())
    assert scores["top1"] == summary["top1"]
    with (out / "per_class.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["left", "right"]
    table = pq.read_table(out / "predictions")
    assert len(table) == 8
    assert set(table["label_true"].to_pylist()) == {"left", "right"}
    assert np.mean(table["correct"].to_pylist()) == pytest.approx(summary["top1"])
    page = (out / "worst.html").read_text("utf-8")
    assert page.count("data:image") == table["correct"].to_pylist().count(False)
    assert re.search(r'"truth": ?"(left|right)"', page)
    shown = [
        str(uri)
        for uri, right in zip(*(table[c].to_pylist() for c in ("uri", "correct")), strict=True)
        if not right
    ]
    assert shown
    assert all(f'"path":"{uri}"' in page.replace('": "', '":"') for uri in shown)
    assert "tubelet-evaluate-" not in page
    run = mlflow.MlflowClient(uri).get_run(str(summary["run_id"]))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["top1"] == summary["top1"]
    assert run.data.tags["tubelet.data_fingerprint"]
    assert run.data.tags["tubelet.model_uri"].endswith("model.safetensors")
    artifacts = {item.path for item in mlflow.MlflowClient(uri).list_artifacts(run.info.run_id)}
    assert {"figures", "per_class.csv", "metrics.json", "worst.html"} <= artifacts
    # The same again replaces its own output, and gives the same.
    assert evaluate()["top1"] == summary["top1"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="is no evaluation: choose another --out"):
        command(load_settings(EvaluateOptions, given | {"out": str(tmp_path / "other")}))
    assert (tmp_path / "other" / "thesis.txt").exists()


def test_a_video_replaced_since_the_index_is_counted(tmp_path: Path) -> None:
    manifest = read_manifest(write_corpus(tmp_path, {"train": 4}))
    replaced = manifest["uri"][0].as_py()
    Path(replaced).write_bytes(Path(manifest["uri"][1].as_py()).read_bytes())
    config = EvaluationConfig(workers=1, max_error_rate=0.3)
    found = evaluate_model(make_bundle({"label": ["left", "right"]}), manifest, "train", config)
    assert (found.ok, found.errors) == (3, 1)
    assert [row["error_code"] for row in found.rows if row["uri"] == replaced] == ["changed"]

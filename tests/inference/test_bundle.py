"""A model is found by every name it has, whole or not at all, and MLflow keeps no pickle of it."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import tubelet
from support import S3Bucket
from support.training import moving_square, write_video
from support.vivit import randomised
from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.bundle import ModelBundle, find_link
from tubelet.inference.forward import Forward
from tubelet.tracking import Tracker, resolve_model
from tubelet.vivit import ViViT, ViViTConfig

SPEC = ClipSpec(frames=8, stride=1, size=32, short_side=36, tubelet=(2, 8, 8))


def make_bundle(seed: int = 0, labels: tuple[str, ...] = ("left", "right", "still")) -> ModelBundle:
    config = ViViTConfig.preset("tiny-8x2-model1", classes=len(labels))
    model = randomised(ViViT(config), seed)
    return ModelBundle(model, {"label": list(labels)}, SPEC, metadata={"step": 7, "recipe": {"lr": 0.1}})


def same(a: ModelBundle, b: ModelBundle) -> bool:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def write_checkpoint(out: Path, step: int, bundle: ModelBundle, *, complete: bool = True) -> Path:
    folder = out / "checkpoints" / f"step-{step:08d}"
    bundle.save(folder)
    if complete:
        (folder / "COMPLETE").write_text("{}")
    return folder


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    bundle = make_bundle()
    path = bundle.save(tmp_path)
    found = ModelBundle.load(tmp_path)
    assert same(found, bundle)
    assert (found.labels, found.clip, found.multilabel) == (bundle.labels, SPEC, False)
    assert found.metadata == {"step": 7, "recipe": {"lr": 0.1}}
    assert found.source == str(path)
    assert same(ModelBundle.load(path), bundle)


def test_identity_is_the_content(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_bundle(seed).save(tmp_path / name)
    one, two, three = (ModelBundle.load(tmp_path / name).identity for name in "abc")
    assert one == two
    assert one.startswith("sha256:")
    assert one != three


def test_training_under_way_gives_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    old, new, broken = make_bundle(1), make_bundle(2), make_bundle(3)
    write_checkpoint(tmp_path, 10, old)
    folder = write_checkpoint(tmp_path, 20, new)
    half = write_checkpoint(tmp_path, 30, broken, complete=False)
    found = ModelBundle.load(tmp_path)
    assert same(found, new)
    assert found.source == str(folder / "model.safetensors")
    assert same(ModelBundle.load(tmp_path / "checkpoints" / "step-00000010"), old)
    with pytest.raises(UserError, match="step-00000030 is incomplete"):
        ModelBundle.load(half)
    final = make_bundle(4)
    final.save(tmp_path)
    assert same(ModelBundle.load(tmp_path), final)


def test_from_s3(s3: S3Bucket, tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.save(tmp_path / "run")
    storage.upload_dir(tmp_path / "run", f"{s3.uri}/run")
    found = ModelBundle.load(f"{s3.uri}/run")
    assert same(found, bundle)
    assert found.identity == ModelBundle.load(tmp_path / "run").identity


def test_no_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model at .*nothing: neither model.safetensors nor a complete"):
        ModelBundle.load(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is no model of tubelet"):
        ModelBundle.load(tmp_path)


def test_labels_must_fit_the_model() -> None:
    model = ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=3))
    with pytest.raises(ValueError, match=r"the model has .*3.*, the labels are .*2"):
        ModelBundle(model, {"label": ["a", "b"]}, SPEC)


def test_unknown_labels_are_named() -> None:
    bundle = make_bundle()
    bundle.same_classes({"label": {"left"}}, "the manifest")
    with pytest.raises(UserError, match=r"the manifest has 2 labels .* such as \['down', 'up'\].*left"):
        bundle.same_classes({"label": {"left", "up", "down"}}, "the manifest")
    with pytest.raises(UserError, match="no head 'verb'"):
        bundle.same_classes({"verb": {"cut"}}, "the manifest")


def test_views_are_averaged_as_raw_logits_in_any_batch_size() -> None:
    bundle = make_bundle()
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (3, 4, SPEC.tokens, SPEC.token_bytes), dtype=np.uint8)
    with torch.inference_mode():
        each = bundle.model(torch.from_numpy(x.reshape(12, *x.shape[2:]))).view(3, 4, -1).mean(1).numpy()
    x.flags.writeable = False  # as Ray hands out its memory
    for batch in (1, 5, 12):
        forward = Forward(make_bundle().model, torch.device("cpu"), most_clips=batch)
        got = forward(x, np.array([0, 2]))
        np.testing.assert_allclose(got.logits["label"], each[[0, 2]], atol=1e-5)
        np.testing.assert_allclose(got.probabilities["label"].sum(-1), 1, atol=1e-6)
        assert got.finite.all()


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, ModelBundle]:
    """Tracking URI, run id and the bundle of a model with two versions, the first of them champion."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    bundle, other = make_bundle(1), make_bundle(2)
    bundle.save(folder / "model")
    other.save(folder / "other")
    tracker = Tracker.start(uri, "models", "first", system_metrics=False)
    assert tracker.log_model(folder / "model", "moves", alias="champion", step=9) == "1"
    tracker.finish()
    later = Tracker.start(uri, "models", "second", system_metrics=False)
    assert later.log_model(folder / "other", "moves") == "2"
    later.finish()
    return uri, tracker.run_id, bundle


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUBELET_CACHE", str(tmp_path / "cache"))


def test_found_by_alias_version_run_and_id(registered: tuple[str, str, ModelBundle]) -> None:
    uri, run_id, bundle = registered
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    by_alias = ModelBundle.load("models:/moves@champion", uri)
    assert same(by_alias, bundle)
    assert by_alias.identity == "models:/moves/1"
    assert by_alias.run_id == run_id
    for name in ("models:/moves/1", f"runs:/{run_id}", f"runs:/{run_id}/moves", f"runs:/{run_id}/model"):
        assert ModelBundle.load(name, uri).identity == "models:/moves/1", name
    assert ModelBundle.load("models:/moves/latest", uri).identity == "models:/moves/2"
    model_id = by_alias.described().model_id
    # MLflow's pages show the logged model as that version.
    tags = mlflow.MlflowClient(uri).get_logged_model(model_id).tags
    assert json.loads(tags["mlflow.modelVersions"]) == [{"name": "moves", "version": 1}]
    assert same(ModelBundle.load(f"models:/{model_id}", uri), bundle)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/nothing@champion", "nothing not found"),
        ("models:/moves@nobody", "nobody not found"),
        ("models:/moves/7", "cannot load models:/moves/7"),
        ("runs:/0123", "0123"),
    ],
)
def test_a_name_that_is_not_there(registered: tuple[str, str, ModelBundle], name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*--tracking-uri"):
        ModelBundle.load(name, registered[0])


def test_a_folder_s_model_leads_to_its_registered_version(
    registered: tuple[str, str, ModelBundle], tmp_path: Path
) -> None:
    uri, run_id, bundle = registered
    bundle.metadata["run_id"] = run_id
    bundle.save(tmp_path)
    link = find_link(ModelBundle.load(tmp_path), uri)
    assert (link.run_id, link.identity) == (run_id, "models:/moves/1")
    assert link.model_id


def test_logged_from_code_with_signature_and_without_a_pickle(
    registered: tuple[str, str, ModelBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow puts the model's own copy of the code first on the path: later tests must not start from it.
    monkeypatch.setattr(sys, "path", list(sys.path))
    uri, _, _ = registered
    link = ModelBundle.load("models:/moves@champion", uri).described()
    place = mlflow.MlflowClient(uri).get_logged_model(link.model_id).artifact_location
    folder = Path(mlflow.artifacts.download_artifacts(place, dst_path=str(tmp_path)))
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    assert {"model.safetensors", "serving.py", "MLmodel", "input_example.json"} <= set(names)
    loaded = mlflow.pyfunc.load_model(str(folder))
    assert len(loaded.metadata.signature.inputs.inputs) == 1
    video = tmp_path / "a left.mp4"
    write_video(video, moving_square(-1, 5))
    table = pd.DataFrame({"uri": [str(video), str(tmp_path / "missing.mp4")]})
    out = loaded.predict(table, params={"views": "2x1", "topk": 2})
    with tubelet.load("models:/moves@champion", tracking_uri=uri) as model:
        row, missing = model.predict(table["uri"], views="2x1", topk=2)
    assert (out["label"][0], out["score"][0]) == (row["label"], row["score"])
    assert out["topk_labels"][0] == row["topk_labels"]
    assert out["error"][1] == missing["error"]
    assert len(out["topk_labels"][0]) == 2
    assert pd.isna(out["label"][1])
    assert "No such file" in out["error"][1]
    assert list(out["uri"]) == list(table["uri"])
    # Whatever people hand in gets the same answer.
    data = video.read_bytes()
    b64 = base64.b64encode(data).decode()
    given = (str(video), [str(video)], table["uri"][:1], data, [data], pd.DataFrame({"b64": [b64]}))
    for one in (*given, "data:video/mp4;base64," + b64):
        (label,) = loaded.predict(one, params={"views": "2x1", "topk": 2})["label"]
        assert label == row["label"], str(one)[:60]
    mixed = loaded.predict([str(video), "data:video/mp4;base64,!", None])
    assert list(mixed["error"].isna()) == [True, False, False]
    assert mixed["topk_labels"][1] == []
    for wrong in ({"views": "four"}, {"topk": 0}):
        with pytest.raises(mlflow.MlflowException, match=r"views|topk"):
            loaded.predict(str(video), params=wrong)


def test_downloads_are_kept(registered: tuple[str, str, ModelBundle]) -> None:
    folder, link = resolve_model("models:/moves@champion", registered[0])
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again, _ = resolve_model(link.identity or "", registered[0])
    assert again == folder
    assert (again / "model.safetensors").stat().st_mtime_ns == stamp

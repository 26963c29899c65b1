"""A logged model where tubelet never was: the commands of MLflow, in an environment of its requirements."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.training import moving_square, write_video
from support.vivit import randomised
from tubelet.clips import ClipSpec
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.local import LocalModel
from tubelet.tracking import Tracker, resolve_model
from tubelet.tracking.store import client_for
from tubelet.vivit import ViViT, ViViTConfig

pytestmark = pytest.mark.slow
MODEL = "models:/served@best"
COLUMNS = {"uri", "label", "score", "topk_labels", "topk_scores", "error"}
# Making the environment takes minutes: a folder named here is made once and kept.
KEPT = os.environ.get("TUBELET_SERVING_ENV")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """The tracking server, a video, and the row of the model for it."""
    folder = tmp_path_factory.mktemp("served")
    uri = f"sqlite:///{folder}/mlflow.db"
    spec = ClipSpec(frames=8, stride=1, size=32, short_side=36, tubelet=(2, 8, 8))
    model = randomised(ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=3)), 0)
    bundle = ModelBundle(model, {"label": ["left", "right", "still"]}, spec)
    bundle.save(folder / "bundle")
    with Tracker.start(uri, "served", "train", system_metrics=False) as tracker:
        assert tracker.log_model(folder / "bundle", "served", alias="best") == "1"
    video = folder / "a clip.mp4"
    write_video(video, moving_square(-1, 5))
    with LocalModel(ModelBundle.load(folder / "bundle")) as local:
        (row,) = local.predict(str(video))
    return uri, video, row


@pytest.fixture(scope="module")
def environment(
    logged: tuple[str, Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Variables of a shell in a fresh environment that has the model's requirements and nothing else."""
    link = resolve_model(MODEL, logged[0])[1]
    place = client_for(logged[0]).get_logged_model(link.model_id).artifact_location
    requirements = Path(place.removeprefix("file://")) / "requirements.txt"
    folder = Path(KEPT) if KEPT else tmp_path_factory.mktemp("env") / "venv"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", "-r", str(requirements)], check=True)
        (folder / "done").touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    env["PATH"] = f"{folder}/bin:{env['PATH']}"
    command = [folder / "bin/python", "-c", "import tubelet"]
    missing = subprocess.run(command, check=False, env=env, capture_output=True)
    assert b"No module named 'tubelet'" in missing.stderr
    return env | {"MLFLOW_TRACKING_URI": logged[0], "TUBELET_CACHE": str(folder / "cache")}


def assert_same(found: dict[str, Any], row: dict[str, Any]) -> None:
    """Another build of torch may move last bits."""
    assert set(found) == COLUMNS
    assert (found["label"], found["topk_labels"]) == (row["label"], row["topk_labels"])
    assert found["score"] == pytest.approx(row["score"], abs=1e-5)


def test_predict(
    logged: tuple[str, Path, dict[str, Any]], environment: dict[str, str], tmp_path: Path
) -> None:
    _, video, row = logged
    given, out = tmp_path / "in.json", tmp_path / "out.json"
    given.write_text(json.dumps({"inputs": [str(video), str(tmp_path / "missing.mp4")]}))
    command = ["mlflow", "models", "predict", "-m", MODEL, "-i", str(given), "-o", str(out)]
    command += ["-t", "json", "--env-manager", "local"]
    done = subprocess.run(
        command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found, missing = json.loads(out.read_text("utf-8"))["predictions"]
    assert_same(found, row)
    # MLflow writes NaN for a text that is not there.
    assert (isinstance(missing["label"], str), "No such file" in missing["error"]) == (False, True)


def test_serve(logged: tuple[str, Path, dict[str, Any]], environment: dict[str, str], tmp_path: Path) -> None:
    _, video, row = logged
    b64 = base64.b64encode(video.read_bytes()).decode()
    with serving(environment, tmp_path) as address:
        (found,) = ask(address, {"dataframe_split": {"columns": ["b64"], "data": [[b64]]}})
        assert_same(found, row)
        text = "data:video/mp4;base64," + b64
        both = ask(address, {"inputs": [text, "data:video/mp4;base64,!"], "params": {"topk": 2}})
        assert (both[0]["label"], len(both[0]["topk_labels"])) == (row["label"], 2)
        assert (both[1]["topk_labels"], bool(both[1]["error"])) == ([], True)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, {"inputs": [text], "params": {"views": "four"}})
        assert refused.value.code == 400
        assert "views" in refused.value.read().decode()


@contextmanager
def serving(env: dict[str, str], folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", MODEL, "-p", str(port), "--env-manager", "local"]
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", server, folder / "serve.log")
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text("utf-8")
            time.sleep(0.5)
    raise AssertionError(log.read_text("utf-8"))


def ask(address: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: list[dict[str, Any]] = json.load(answer)["predictions"]
        return found

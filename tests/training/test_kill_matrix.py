"""What is killed comes back, and ends with the same bits as the run that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import torch
from training_support import RECIPE, weights_of, write_corpus

from pipeline.corpus import storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 60
SETTINGS = [*RECIPE, f"max_steps={STEPS}", "checkpoint_every=5", "retain=20", "workers=2", "ema=0.9"]
SETTINGS += ["dropout=0.1", "optimiser.name=adamw"]


@dataclass
class Train:
    """``tubelet train`` as a process of its own, with a Ray of its own."""

    manifest: str
    out: str
    tracking_uri: str

    def start(self, *options: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
        command = [sys.executable, "-m", "jobs.cli", "train", "--recipe", "tiny", "--manifest", self.manifest]
        command += ["--out", self.out, "--tracking-uri", self.tracking_uri, *SETTINGS, *options]
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    def run(self, *options: str) -> dict[str, Any]:
        return self.finish(self.start(*options))

    def wait_for_step(self, process: subprocess.Popen[str], step: int) -> None:
        wait_until(lambda: is_complete(self.out, step) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""

    def client(self) -> Any:
        return mlflow.MlflowClient(self.tracking_uri)


def is_complete(out: str, step: int) -> bool:
    """Whether the checkpoint of ``step`` is there, whole."""
    try:
        return "COMPLETE" in storage.list_names(f"{out}/checkpoints/step-{step:08d}")
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 600) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 10, "val": 2}, broken=[3])


@pytest.fixture(scope="module")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Train(manifest, str(folder / "run"), f"sqlite:///{folder}/mlflow.db").run()
    return folder / "run"


@pytest.fixture
def train(manifest: str, tmp_path: Path) -> Train:
    return Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")


def check(train: Train, undisturbed: Path, summary: dict[str, Any]) -> None:
    """Same bits, one MLflow run that ended well, every step in it once."""
    a, b = weights_of(str(undisturbed), STEPS), weights_of(train.out, STEPS)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    client = train.client()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(summary["run_id"], "FINISHED")]
    steps = [point.step for point in client.get_metric_history(summary["run_id"], "train/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1))


def test_driver_killed(train: Train, undisturbed: Path) -> None:
    process = train.start()
    train.wait_for_step(process, 10)
    process.kill()
    process.wait()
    assert not storage.exists(f"{train.out}/model.safetensors")
    check(train, undisturbed, train.run("--resume"))


def test_rank_killed(train: Train, undisturbed: Path) -> None:
    process = train.start()
    train.wait_for_step(process, 10)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in p.name()]
    ranks = ranks or [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(p.cmdline())
    ]
    ranks[-1].send_signal(signal.SIGKILL)
    summary = train.finish(process)
    assert summary["restarts"] == 1
    check(train, undisturbed, summary)


def test_decode_worker_killed(train: Train, undisturbed: Path) -> None:
    process = train.start()
    train.wait_for_step(process, 5)
    workers = [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if "TrainDecoder" in " ".join(p.cmdline())
    ]
    workers[0].send_signal(signal.SIGKILL)
    check(train, undisturbed, train.finish(process))


def test_driver_asked_to_stop(train: Train, undisturbed: Path) -> None:
    process = train.start()
    train.wait_for_step(process, 10)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert "--resume" in err
    stopped_at = int(err.partition("at step ")[2].partition(";")[0])
    assert is_complete(train.out, stopped_at)
    client = train.client()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in runs] == ["KILLED"]
    check(train, undisturbed, train.run("--resume"))

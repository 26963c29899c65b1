"""What is killed comes back, and ends with the same bits as the run that nobody killed."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from support.training_process import Train, check, is_complete
from tubelet import storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def train(manifest: str, tmp_path: Path) -> Train:
    return Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")


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

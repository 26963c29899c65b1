"""The store, the tracking server or a node goes away while a run trains; it ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import free_port, mlflow_server, wait_until
from support.training import weights_of
from support.training_process import Train, check, is_complete, steps_once
from tubelet.storage import StorageOptions
from tubelet.storage.local_s3 import LocalS3
from tubelet.storage.lock import OutputLock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_store_stopped_for_30_seconds(
    manifest: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalS3(tmp_path / "s3", ("runs",)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        train = Train(manifest, "s3://runs/run", f"sqlite:///{tmp_path}/mlflow.db")
        process = train.start()
        train.wait_for_step(process, 10)
        server.stop()
        time.sleep(30)
        assert process.poll() is None, "it did not outlive the store's absence"
        server.start()
        summary = train.finish(process)
        assert summary["restarts"] == 0
        check(train, undisturbed, summary)


def test_videos_vanish_and_come_back(manifest: str, undisturbed: Path, tmp_path: Path) -> None:
    """The run ends and says why; what it had learned before is there, and a resume goes on from it."""
    train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
    videos = Path(manifest).with_name("videos")
    process = train.start()
    train.wait_for_step(process, 10)
    videos.rename(videos.with_name("away"))
    try:
        _, err = process.communicate(timeout=600)
    finally:
        videos.with_name("away").rename(videos)
    print(err)
    assert process.returncode == 1
    assert "not_found" in err
    assert "This is no fault of the files" in err
    assert is_complete(train.out, 10)
    summary = train.run("--resume")
    check(train, undisturbed, summary)


def test_output_that_was_taken_over_is_left_alone(manifest: str, tmp_path: Path) -> None:
    """One line, no checkpoint more, and nothing of what the other job has is taken away."""
    train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
    process = train.start("max_steps=5000", "retain=1000")
    train.wait_for_step(process, 10)
    checkpoints = Path(train.out) / "checkpoints"
    with OutputLock(train.out, job="tubelet other", options=StorageOptions(break_lock=True)):
        time.sleep(2)  # what was being written when the lock was broken
        there = sorted(path.name for path in checkpoints.iterdir() if (path / "COMPLETE").exists())
        _, err = process.communicate(timeout=300)
        print(err)
        left = sorted(path.name for path in checkpoints.iterdir() if (path / "COMPLETE").exists())
    assert process.returncode == 1
    assert [line for line in err.splitlines() if line.startswith("error:")] == [
        line for line in err.splitlines() if f"{train.out} was taken over by `tubelet other`" in line
    ]
    assert "Traceback" not in err
    assert left == there
    assert not (Path(train.out) / "model.safetensors").exists()


def test_diverged_run_registers_nothing(manifest: str, tmp_path: Path) -> None:
    train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
    process = train.start("lr=1e30")
    _, err = process.communicate(timeout=600)
    print(err)
    assert process.returncode == 1
    assert "is not a finite number; nothing was registered" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    client = train.client()
    assert not client.search_registered_models()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FAILED"]


def test_failed_start_says_why_and_leaves_nothing(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TUBELET_RANK_CORES", "4095")  # a core that no machine has
    process = train.start("max_failures=0", "max_steps=2")
    _, err = process.communicate(timeout=600)
    print(err)
    assert process.returncode == 1
    assert "rank 0 failed: OSError: [Errno 22] Invalid argument" in err
    monkeypatch.delenv("TUBELET_RANK_CORES")
    train.run("max_failures=0", "max_steps=2")


def test_tracking_server_stopped_for_a_minute(manifest: str, undisturbed: Path, tmp_path: Path) -> None:
    port = free_port()
    train = Train(manifest, str(tmp_path / "run"), f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path, port):
        process = train.start()
        train.wait_for_step(process, 10)
    time.sleep(60)
    assert process.poll() in (None, 0)
    with mlflow_server(tmp_path, port):
        check(train, undisturbed, train.finish(process))


# Nothing is drawn for a rank, so that the weights of different worlds differ by the order of summation only.
PLAIN = ("dropout=0", "optimiser.name=sgd", "lr=0.01", "checkpoint_every=25", "max_steps=150")
LONGER = 150


@pytest.fixture(scope="module")
def two_ranks(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of a run whose two ranks nobody disturbed."""
    folder = tmp_path_factory.mktemp("two ranks")
    Train(manifest, str(folder / "run"), f"sqlite:///{folder}/mlflow.db").run(*PLAIN)
    return str(folder / "run")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without room for a rank, and two nodes with room for one each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 << 20})
    for _ in range(2):
        made.add_node(num_cpus=4, object_store_memory=200 << 20)
    yield made
    made.shutdown()


def _elastic(train: Train, cluster: Any, *more: str) -> subprocess.Popen[str]:
    # Three decoders do not fit on one node: Ray Data gives no work to those on a node that is drained, and
    # where all are, the ranks wait for clips until the node is gone.
    settings = (*PLAIN, "workers=1..2", "rank_cpus=2.5", "decode_workers=3", *more)
    return train.start("--ray-address", cluster.address, *settings)


def _check_elastic(train: Train, whole: str, summary: dict[str, Any]) -> None:
    """Every step once, and the weights of the run that was not disturbed."""
    assert steps_once(train.client(), summary["run_id"]) == LONGER
    a, b = weights_of(whole, LONGER), weights_of(train.out, LONGER)
    apart = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    print(f"largest difference of a weight to the undisturbed run with two ranks: {apart:.2e}")
    assert apart < 1e-5


def test_node_removed_under_an_elastic_run(
    manifest: str, two_ranks: str, cluster: Any, tmp_path: Path
) -> None:
    """One of two nodes dies; the run goes on with one rank on the same global batches."""
    train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
    process = _elastic(train, cluster)
    train.wait_for_step(process, 25)
    os.kill(_raylet(_node_of_a_rank(cluster)), signal.SIGKILL)
    summary = train.finish(process)
    assert summary["restarts"] == 1
    _check_elastic(train, two_ranks, summary)


def test_node_drained_under_an_elastic_run(
    manifest: str, two_ranks: str, cluster: Any, tmp_path: Path
) -> None:
    """Notice comes before the node goes: a checkpoint is taken first, and none of it is a failure."""
    train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
    process = _elastic(train, cluster, "max_failures=0")
    train.wait_for_step(process, 25)
    node = _node_of_a_rank(cluster)
    drain = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address]
    drain += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    drain += ["--reason-message", "spot", "--deadline-remaining-seconds", "120"]
    subprocess.run(drain, check=True, capture_output=True)
    wait_until(lambda: bool(_unscheduled(train)) or process.poll() is not None, 60)
    assert _unscheduled(train), "no checkpoint was taken because of the notice"
    wait_until(lambda: not _ranks(_raylet(node)) or process.poll() is not None, 120)
    os.kill(_raylet(node), signal.SIGKILL)
    _check_elastic(train, two_ranks, train.finish(process))


def _unscheduled(train: Train) -> list[int]:
    """Checkpoints that are not at a multiple of ``checkpoint_every``."""
    names = [path.name for path in (Path(train.out) / "checkpoints").glob("step-*")]
    return [step for step in (int(name[5:]) for name in names) if step % 25 and is_complete(train.out, step)]


def _node_of_a_rank(cluster: Any) -> Any:
    return next(node for node in cluster.worker_nodes if _ranks(_raylet(node)))


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _ranks(raylet: int) -> list[psutil.Process]:
    """Ranks that run below a raylet, as far as both still do."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(raylet).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
    return found

"""The store, the tracking server or a node goes away while a run trains; it ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
import torch
from training_process import STEPS, Train, check, wait_until
from training_support import weights_of, write_corpus

from pipeline.corpus.local_s3 import LocalS3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 10, "val": 2}, broken=[3])


@pytest.fixture(scope="module")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Train(manifest, str(folder / "run"), f"sqlite:///{folder}/mlflow.db").run()
    return folder / "run"


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


@contextmanager
def _mlflow_server(port: int, folder: Path) -> Iterator[None]:
    """A tracking server, ended with all its workers."""
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port)]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or _answers(port), 120)
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except (URLError, OSError):
        return False


def test_tracking_server_stopped_for_a_minute(manifest: str, undisturbed: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train = Train(manifest, str(tmp_path / "run"), f"http://127.0.0.1:{port}")
    with _mlflow_server(port, tmp_path):
        process = train.start()
        train.wait_for_step(process, 10)
    time.sleep(60)
    assert process.poll() in (None, 0)
    with _mlflow_server(port, tmp_path):
        check(train, undisturbed, train.finish(process))


def test_node_removed_under_an_elastic_run(manifest: str, undisturbed: Path, tmp_path: Path) -> None:
    """Two nodes with a rank each: one dies, the run goes on with one rank on the same global batches."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 << 20})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=4, object_store_memory=200 << 20)
        train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
        # No node has room for two ranks, and the head has none for one.
        settings = ("workers=1..2", "rank_cpus=2.5", "decode_workers=1")
        process = train.start("--ray-address", cluster.address, *settings)
        train.wait_for_step(process, 10)
        raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
        os.kill(_raylet_of_a_rank(raylets), signal.SIGKILL)
        summary = train.finish(process)
        assert summary["restarts"] == 1
        client = train.client()
        steps = [point.step for point in client.get_metric_history(summary["run_id"], "train/loss")]
        assert sorted(steps) == list(range(1, STEPS + 1))
        a, b = weights_of(str(undisturbed), STEPS), weights_of(train.out, STEPS)
        apart = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
        print(f"largest difference of a weight to the undisturbed run with two ranks: {apart:.2e}")
        assert all(torch.allclose(a[name], b[name], rtol=1e-2, atol=1e-3) for name in a)
    finally:
        cluster.shutdown()


def _raylet_of_a_rank(raylets: list[int]) -> int:
    for pid in raylets:
        children = psutil.Process(pid).children(recursive=True)
        if any("RayTrainWorker" in " ".join(child.cmdline()) for child in children):
            return pid
    raise AssertionError("no rank runs on a node that can be removed")

"""The store, the tracking server or a node goes away while a run trains; it ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from support import free_port, mlflow_server
from training_process import STEPS, Train, check
from training_support import weights_of

from pipeline.corpus.local_s3 import LocalS3

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


def test_node_removed_under_an_elastic_run(manifest: str, tmp_path: Path) -> None:
    """Two nodes with a rank each: one dies, the run goes on with one rank on the same global batches.

    Nothing is drawn for a rank here, so that the weights differ by the order of summation only.
    """
    from ray.cluster_utils import Cluster

    plain = ("dropout=0", "optimiser.name=sgd", "lr=0.05")
    whole = Train(manifest, str(tmp_path / "whole"), f"sqlite:///{tmp_path}/whole.db")
    whole.run(*plain)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 << 20})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=4, object_store_memory=200 << 20)
        train = Train(manifest, str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db")
        # No node has room for two ranks, and the head has none for one.
        settings = (*plain, "workers=1..2", "rank_cpus=2.5", "decode_workers=1")
        process = train.start("--ray-address", cluster.address, *settings)
        train.wait_for_step(process, 10)
        raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
        os.kill(_raylet_of_a_rank(raylets), signal.SIGKILL)
        summary = train.finish(process)
        assert summary["restarts"] == 1
        client = train.client()
        steps = [point.step for point in client.get_metric_history(summary["run_id"], "train/loss")]
        assert sorted(steps) == list(range(1, STEPS + 1))
        a, b = weights_of(whole.out, STEPS), weights_of(train.out, STEPS)
        apart = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
        print(f"largest difference of a weight to the undisturbed run with two ranks: {apart:.2e}")
        assert apart < 1e-4
    finally:
        cluster.shutdown()


def _raylet_of_a_rank(raylets: list[int]) -> int:
    for pid in raylets:
        children = psutil.Process(pid).children(recursive=True)
        if any("RayTrainWorker" in " ".join(child.cmdline()) for child in children):
            return pid
    raise AssertionError("no rank runs on a node that can be removed")

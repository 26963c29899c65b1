"""With Ray's own autoscaler and fake nodes: jobs bring up what they need, and let it go."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from support import fake_autoscaler, wait_until
from support.cluster import CoresInUse, Job, cpus_in_use, ray_head
from support.labelling import assert_one_row_each, read_rows, tiny_bundle, write_corpus
from support.training import RECIPE
from support.training import write_corpus as write_squares
from support.training_process import is_complete

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

OBJECTS, DISTINCT = 1200, 20
MOST = 2


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A cluster that has a head without CPUs, and may have two nodes of two CPUs."""
    names = {
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
    }
    head = {"env_vars": names, "no_monitor": True}
    with (
        ray_head(0, head=head, enable_autoscaler_v2=True) as cluster,
        TemporaryDirectory(prefix="tf", ignore_cleanup_errors=True) as nodes,  # sockets want a short path
    ):
        config = tmp_path / "autoscaler.json"
        config.write_text(json.dumps(_config(cluster.address)))
        command = [sys.executable, fake_autoscaler.__file__, "--gcs-address", cluster.address]
        command += ["--autoscaling-config", str(config), "--logs-dir", str(tmp_path)]
        env = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        env |= {"FAKE_NODES": nodes}
        with (tmp_path / "autoscaler").open("w") as out:
            monitor = psutil.Popen(command, env={**os.environ, **env}, stdout=out, stderr=out)
        try:
            yield cluster.address
        finally:
            for process in [*monitor.children(recursive=True), monitor]:  # its nodes, too
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            monitor.wait()


def _config(gcs: str) -> dict[str, object]:
    node = {"CPU": 2, "memory": 2 << 30, "object_store_memory": 200 << 20}
    return {
        "cluster_name": "fake_multinode",
        "max_workers": MOST,
        "idle_timeout_minutes": 0.2,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": gcs,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": MOST},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "setup_commands": [],
        "initialization_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def _nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes()) - 1


def test_label_brings_up_the_nodes_that_it_needs_and_lets_them_go(address: str, tmp_path: Path) -> None:
    videos, out = write_corpus(tmp_path / "videos", OBJECTS, distinct=DISTINCT), tmp_path / "out"
    assert _nodes() == 0
    with CoresInUse() as cores:
        job = Job(
            address, tmp_path, "label", videos, "--model", tiny_bundle(tmp_path / "model"), "--out", out
        )
        job.wait_for("waiting for nodes: the cluster has 0 of 1 CPUs")
        job.wait_until(lambda: cores.seen[-1][1] > 2 * MOST - 1)
        found = job.result()
        wait_until(lambda: _nodes() == 0, 120)
    print(cores.lines())
    assert (found["ok"], found["errors"]) == (OBJECTS, 0)
    assert_one_row_each(read_rows(str(out)), OBJECTS)
    assert _nodes() == 0, "nodes without work are still there"


def test_train_brings_up_a_node_per_rank_and_lets_them_go(address: str, tmp_path: Path) -> None:
    manifest, out = write_squares(tmp_path / "corpus", {"train": 16, "val": 4}), tmp_path / "run"
    words = ["train", "--recipe", "tiny", "--manifest", manifest, "--out", out, *RECIPE, "max_steps=4000"]
    # One more than there can be: this must not keep the others away.
    words += ["checkpoint_every=20", f"workers=1..{MOST + 1}"]
    with CoresInUse() as cores:
        job = Job(address, tmp_path, *words)
        job.wait_for("waiting for nodes: the cluster has 0 of ")
        job.wait_until(lambda: _nodes() == MOST and all(used > 0.1 for used in cpus_in_use()))
        job.wait_until(lambda: is_complete(str(out), 20))
        assert all(used > 0.1 for used in cpus_in_use()), "ranks that could have had a node each share one"
        assert job.stop() == 143
        wait_until(lambda: _nodes() == 0, 120)
    print(cores.lines())

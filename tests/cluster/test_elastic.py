"""Jobs on a head without CPUs: they wait for nodes, use those that come, and outlive those that go."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import tubelet
from ray.cluster_utils import Cluster
from support import wait_until
from support.cluster import ray_head
from support.labelling import assert_one_row_each, read_rows, tiny_bundle, write_video
from support.training import RECIPE
from support.training import write_corpus as write_squares
from support.training_process import is_complete

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OBJECTS, DISTINCT = 1500, 30
STEPS = 60


class Job:
    """A command that works on a cluster, with what it writes."""

    def __init__(self, cluster: Cluster, folder: Path, *words: Any) -> None:
        command = [str(Path(sys.executable).with_name("tubelet")), *map(str, words)]
        command += ["--ray-address", cluster.address, "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.said or self._process.poll() is not None, 300)
        assert text in self.said, self.said[-3000:]

    def wait_until(self, condition: Any) -> None:
        wait_until(lambda: condition() or self._process.poll() is not None, 400)
        assert self._process.poll() is None, self.said[-3000:]

    def result(self) -> dict[str, Any]:
        stdout, _ = self._process.communicate(timeout=600)
        assert self._process.returncode == 0, self.said[-3000:]
        found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return found


def _used_cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0))


def _published(out: Path) -> int:
    return sum(1 for _ in out.glob("part-*.parquet"))


def test_label_uses_the_nodes_that_come_and_loses_nothing_with_those_that_go(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for number in range(DISTINCT):
        write_video(videos / f"v{number:05d}.mp4", number)
    for number in range(DISTINCT, OBJECTS):
        os.link(videos / f"v{number % DISTINCT:05d}.mp4", videos / f"v{number:05d}.mp4")
    model = tiny_bundle(tmp_path / "model")
    with ray_head(0) as cluster:
        job = Job(cluster, tmp_path, "label", videos, "--model", model, "--out", out)
        job.wait_for("waiting for nodes: the cluster has 0 of 1 CPUs")
        first = cluster.add_node(num_cpus=1)
        job.wait_until(lambda: _published(out))
        began_s = time.monotonic()
        cluster.add_node(num_cpus=1)
        job.wait_until(lambda: _used_cpus() > 1.5)  # a decoder on each
        print(f"both nodes at work {time.monotonic() - began_s:.0f} s after the second joined")
        before = _published(out)
        job.wait_until(lambda: _published(out) > before)
        cluster.remove_node(first, allow_graceful=False)
        found = job.result()
        assert "a node was lost" in job.said
    assert (found["ok"], found["errors"]) == (OBJECTS, 0)
    rows = read_rows(str(out))
    assert_one_row_each(rows, OBJECTS)
    with tubelet.load(str(model)) as alone:
        wanted = alone.predict([str(videos / f"v{number:05d}.mp4") for number in range(DISTINCT)])
    for row in rows:
        one = wanted[int(re.findall(r"v(\d+)\.mp4", row["uri"])[0]) % DISTINCT]
        assert row["label"] == one["label"]
        assert row["score"] == pytest.approx(one["score"], abs=1e-5)


def test_train_begins_with_what_is_there_and_goes_on_without_a_node(tmp_path: Path) -> None:
    manifest = write_squares(tmp_path / "corpus", {"train": 16, "val": 4})
    out = tmp_path / "run"
    settings = [*RECIPE, f"max_steps={STEPS}", "checkpoint_every=5", "workers=1..2"]
    words = ["train", "--recipe", "tiny", "--manifest", manifest, "--out", out, *settings]
    with ray_head(0) as cluster:
        job = Job(cluster, tmp_path, *words)
        job.wait_for("waiting for nodes: the cluster has 0 of ")
        cluster.add_node(num_cpus=2)
        second = cluster.add_node(num_cpus=2)
        job.wait_until(lambda: is_complete(str(out), 10))
        cluster.remove_node(second, allow_graceful=False)
        found = job.result()
        # Where the cores are shared, the node that is left has room for both.
        line = re.search(r"node lost at step \d+; going on at step \d+ with [12] rank", job.said)
        assert line, job.said[-3000:]
    assert found["restarts"] >= 1
    assert is_complete(str(out), STEPS)
    assert (out / "model.safetensors").is_file()

"""Jobs on a head without CPUs: they wait for nodes, use those that come, and outlive those that go."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray
import torch
from support.cluster import CoresInUse, Job, cpus_in_use, ray_head
from support.labelling import assert_as_alone, assert_one_row_each, read_rows, tiny_bundle, write_corpus
from support.training import RECIPE, weights_of
from support.training import write_corpus as write_squares
from support.training_process import is_complete, steps_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

OBJECTS, DISTINCT = 1500, 30
STEPS = 90


def _published(out: Path) -> int:
    return sum(1 for _ in out.glob("part-*.parquet"))


def test_label_uses_the_nodes_that_come_and_loses_nothing_with_those_that_go(tmp_path: Path) -> None:
    videos, out = write_corpus(tmp_path / "videos", OBJECTS, distinct=DISTINCT), tmp_path / "out"
    model = tiny_bundle(tmp_path / "model")
    with ray_head(0) as cluster, CoresInUse() as cores:
        job = Job(cluster.address, tmp_path, "label", videos, "--model", model, "--out", out)
        job.wait_for("waiting for nodes: the cluster has 0 of 1 CPUs")
        first = cluster.add_node(num_cpus=1)
        job.wait_until(lambda: _published(out))
        cluster.add_node(num_cpus=1)
        job.wait_until(lambda: cores.seen[-1][1] > 1.5)  # a worker on each
        before = _published(out)
        job.wait_until(lambda: _published(out) > before)
        cluster.remove_node(first, allow_graceful=False)
        found = job.result()
        assert "a node joined" in job.said
        assert "a node was lost" in job.said
    print(cores.lines())
    assert (found["ok"], found["errors"]) == (OBJECTS, 0)
    rows = read_rows(str(out))
    assert_one_row_each(rows, OBJECTS)
    assert_as_alone(rows, model, videos, DISTINCT)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """The words of a `train` of few small videos."""
    manifest = write_squares(tmp_path_factory.mktemp("corpus"), {"train": 16, "val": 4})

    def words(out: Path, *settings: str) -> list[Any]:
        command = ["train", "--recipe", "tiny", "--manifest", manifest, "--out", out]
        return [*command, *RECIPE, f"max_steps={STEPS}", "checkpoint_every=20", *settings]

    return words


def test_train_grows_with_the_cluster_and_outlives_a_node(
    tmp_path: Path, train: Callable[..., list[Any]]
) -> None:
    out = tmp_path / "run"
    with ray_head(0) as cluster, CoresInUse() as cores:
        job = Job(cluster.address, tmp_path, *train(out, "workers=1..2", "max_steps=4000"))
        job.wait_for("waiting for nodes: the cluster has 0 of ")
        # A rank, its share of the decoders, and the plan find room on one CPU.
        cluster.add_node(num_cpus=1)
        job.wait_until(lambda: is_complete(str(out), 20))
        second = cluster.add_node(num_cpus=1)
        job.wait_for("with 2 ranks")
        (grown,) = re.findall(r"node joined at step (\d+); going on at step (\d+) with 2 ranks", job.said)
        # They saved first: what they did while they were taken down is little.
        assert int(grown[0]) - int(grown[1]) < 15, grown
        assert int(grown[1]) % 20 or is_complete(str(out), int(grown[1]))
        assert all(used > 0.1 for used in cpus_in_use()), "ranks that could have had a node each share one"
        job.wait_until(lambda: is_complete(str(out), (int(grown[1]) // 20 + 2) * 20))
        cluster.remove_node(second, allow_graceful=False)
        job.wait_for("with 1 rank\n")
        assert re.search(r"node lost at step \d+; going on at step \d+ with 1 rank\n", job.said)
        newest = int(re.findall(r"going on at step (\d+)", job.said)[-1])
        job.wait_until(lambda: is_complete(str(out), (newest // 20 + 1) * 20))
        assert job.stop() == 143
    print(cores.lines())
    print(*re.findall(r".*going on at step.*", job.said), sep="\n")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert is_complete(str(out), steps_once(client, run.info.run_id))


def test_train_goes_on_where_a_head_was_lost_with_equal_weights(
    tmp_path: Path, train: Callable[..., list[Any]]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    with ray_head(0) as cluster:
        cluster.add_node(num_cpus=2)
        Job(cluster.address, tmp_path, *train(whole)).result()
    with ray_head(0) as cluster:
        cluster.add_node(num_cpus=2)
        job = Job(cluster.address, tmp_path, *train(out, "--resume"))
        job.wait_until(lambda: is_complete(str(out), 40))
        ray.shutdown()
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        assert job.status() != 0
        assert not is_complete(str(out), STEPS)
    with ray_head(0) as cluster:
        cluster.add_node(num_cpus=2)
        Job(cluster.address, tmp_path, *train(out, "--resume")).result()
    one, other = weights_of(str(whole), STEPS), weights_of(str(out), STEPS)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

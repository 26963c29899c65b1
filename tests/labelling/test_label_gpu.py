"""Jobs on a cluster that says it has a GPU: the paths of GPUs, whatever the models then run on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster
from support.labelling import assert_one_row_each, read_rows, tiny_bundle, write_corpus
from tubelet.clips import ClipSpec
from tubelet.inference.cells import cells_of
from tubelet.inference.graph import Layout
from tubelet.inference.output import OutputFiles
from tubelet.inference.plan import Shard, ShardRequests
from tubelet.inference.pool import WorkerPool
from tubelet.inference.workers import DecodeJob

pytestmark = pytest.mark.slow
COUNT = 30


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    yield cluster.address
    cluster.shutdown()


def run(address: str, tracking: Path, *command: str) -> dict[str, object]:
    environment = {
        **os.environ,
        "RAY_ADDRESS": address,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tracking}/mlflow.db",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tubelet_jobs", *command],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_label_embed_and_evaluate_run_where_there_is_a_gpu(address: str, tmp_path: Path) -> None:
    videos = write_corpus(tmp_path / "videos", COUNT, (3,))
    model = str(tiny_bundle(tmp_path / "model"))
    out = str(tmp_path / "out")
    run(address, tmp_path, "label", str(videos), "--model", model, "--out", out)
    assert_one_row_each(read_rows(out), COUNT)
    assert (
        run(address, tmp_path, "embed", str(videos), "--model", model, "--out", str(tmp_path / "e"))["ok"]
        == COUNT - 1
    )


def test_gpus_that_come_later_are_shared_by_the_actors_beside_them(tmp_path: Path) -> None:
    """With a stage in the place of decoding and predicting, which says what Ray has given it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(cluster.address, log_to_driver=False)
    try:

        class Tells:
            predicts = True

            def __init__(self, *_: object) -> None:
                pass

            def __call__(self, task: pa.Table) -> Iterator[Any]:
                time.sleep(0.1)
                gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
                yield cells_of([pa.table({"request": [task["first"][0].as_py()], "gpus": [gpus]})])

        layout = Layout(1, 0.9, 0, 0.0, 64, 1 << 20, most_decoders=4, gpus_later=True)
        tasks = ShardRequests([Shard("only", 400)], OutputFiles(str(tmp_path))).cut(lambda left: 1)
        decode = DecodeJob((ClipSpec(frames=4, size=32, tubelet=(2, 16, 16)),))
        given: list[float] = []
        with WorkerPool(decode, pa.Table.to_batches, list, layout, Tells) as pool:
            for _, rows in pool.tables(tasks):
                if not given:
                    cluster.add_node(num_cpus=2, num_gpus=1)
                given += rows["gpus"].to_pylist()
        assert len(given) == 400
        assert given[0] == 0.0
        assert set(given) == {0.0, 0.5}, "two actors share the GPU of the node that came"
    finally:
        ray.shutdown()
        cluster.shutdown()

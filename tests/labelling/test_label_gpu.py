"""Jobs on a cluster that says it has a GPU: the paths of GPUs, whatever the models then run on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from support.labelling import assert_one_row_each, read_rows, tiny_bundle, write_corpus

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

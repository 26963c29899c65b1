"""Machines that one has, as `cluster/README.md` goes: a head, workers that come and go, a shell elsewhere."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from support import free_port, mlflow_server, wait_until
from support.cluster import Command
from support.labelling import assert_as_alone, assert_one_row_each, read_rows, tiny_bundle, write_corpus
from support.machines import HERE, Machine, Machines
from support.training import RECIPE, moving_square, write_video
from support.training_process import is_complete, steps_once
from tubelet import storage
from tubelet.storage.local_s3 import LocalS3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or os.geteuid() != 0, reason="wants root on Linux"
    ),
]

OBJECTS, DISTINCT = 1500, 30
BUCKET = "s3://my-bucket"
RAY = Path(sys.executable).with_name("ray")


@dataclass
class Lab:
    """A cluster with a head that does not work, a store, MLflow, and a shell on a machine beside it."""

    machines: Machines
    head: Machine
    folder: Path
    env: dict[str, str]
    token: str
    workers: int = 0

    def submit(self, *words: object, **env: str) -> Command:
        """`tubelet submit` of a job."""
        where = ["--address", f"http://{self.head.address}:8265", "--"]
        return Command(self.folder, "submit", *where, *words, env=self.env | env)

    def worker(self) -> Machine:
        """One more machine that joins."""
        self.workers += 1
        made = self.machines.add(f"worker{self.workers}")
        made.run(RAY, "start", "--address", f"{self.head.address}:6379", env=_ray(self.token))
        return made


def _ray(token: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder, token, port = tmp_path_factory.mktemp("lab"), secrets.token_hex(16), free_port()
    with pytest.MonkeyPatch.context() as patch, Machines(folder) as machines:
        for name in [name for name in os.environ if name.startswith(("RAY_", "AWS_", "MLFLOW_"))]:
            patch.delenv(name)
        with LocalS3(folder / "s3", ("my-bucket",), host=HERE) as store:
            for name, value in store.env.items():
                patch.setenv(name, value)
            patch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", f"{HERE}:*")
            with mlflow_server(folder, port, HERE):
                env = {**store.env, "RAY_AUTH_TOKEN": token, "MLFLOW_TRACKING_URI": f"http://{HERE}:{port}"}
                head = machines.add("head")
                flags = ["--head", "--num-cpus", "0", "--dashboard-host", "0.0.0.0"]
                head.run(RAY, "start", *flags, env=_ray(token))
                yield Lab(machines, head, folder, env, token)


def test_what_the_nodes_cannot_reach_is_refused(lab: Lab) -> None:
    job = lab.submit(
        "index", f"{BUCKET}/none", "--out", f"{BUCKET}/m", AWS_ENDPOINT_URL="http://127.0.0.1:9000"
    )
    assert job.status() == 1
    assert "127.0.0.1:9000" in job.said
    job = lab.submit(
        "index", f"{BUCKET}/none", "--out", f"{BUCKET}/m", MLFLOW_TRACKING_URI="http://localhost:5000"
    )
    assert job.status() == 1
    assert "localhost:5000" in job.said
    print(job.said)


def _published(out: str) -> int:
    try:
        return sum(name.startswith("part-") for name in storage.list_names(out))
    except FileNotFoundError:
        return 0


def test_label_begins_without_workers_and_outlives_one(lab: Lab, tmp_path: Path) -> None:
    videos, out = write_corpus(tmp_path / "videos", OBJECTS, distinct=DISTINCT), f"{BUCKET}/labels"
    storage.upload_dir(videos, f"{BUCKET}/videos")
    model = tiny_bundle(tmp_path / "model")
    storage.upload_dir(model, f"{BUCKET}/model")
    job = lab.submit("label", f"{BUCKET}/videos", "--model", f"{BUCKET}/model", "--out", out)
    job.wait_for("waiting for nodes: the cluster has 0 of 1 CPUs")
    first = lab.worker()
    job.wait_until(lambda: _published(out))
    second = lab.worker()
    job.wait_for("a node joined")
    before = _published(out)
    job.wait_until(lambda: _published(out) > before)
    first.kill()
    found = job.result()
    print(job.said)
    second.kill()
    assert "a node was lost" in job.said
    assert (found["ok"], found["errors"]) == (OBJECTS, 0)
    rows = read_rows(out)
    assert_one_row_each(rows, OBJECTS)
    assert_as_alone(rows, model, videos, DISTINCT)


def test_train_begins_without_workers_grows_and_outlives_one(lab: Lab, tmp_path: Path) -> None:
    for split, count in {"train": 16, "val": 4}.items():
        for number in range(count):
            side = ("left", "right")[number % 2]
            frames = moving_square((-1, 1)[number % 2], number)
            write_video(tmp_path / split / side / f"{number}.mp4", frames)
    storage.upload_dir(tmp_path, f"{BUCKET}/squares")
    manifest, out = f"{BUCKET}/manifest", f"{BUCKET}/run"
    index = lab.submit("index", f"{BUCKET}/squares", "--labels", "folders", "--out", manifest)
    first = lab.worker()
    assert index.result()["ok"] == 20
    words = ["train", "--recipe", "tiny", "--manifest", manifest, "--out", out, *RECIPE]
    job = lab.submit(*words, "max_steps=4000", "checkpoint_every=20", "workers=1..2")
    job.wait_until(lambda: is_complete(out, 20))
    second = lab.worker()
    job.wait_for("with 2 ranks")
    grown = int(re.findall(r"going on at step (\d+) with 2 ranks", job.said)[-1])
    job.wait_until(lambda: is_complete(out, (grown // 20 + 2) * 20))
    first.kill()
    job.wait_for("with 1 rank\n")
    newest = int(re.findall(r"going on at step (\d+)", job.said)[-1])
    job.wait_until(lambda: is_complete(out, (newest // 20 + 1) * 20))
    assert job.stop() == 143
    print(*re.findall(r".*going on at step.*", job.said), sep="\n")
    second.kill()
    client = mlflow.MlflowClient(lab.env["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    (run,) = [run for run in runs if run.data.tags["tubelet.job"] == "train"]
    wait_until(lambda: client.get_run(run.info.run_id).info.status == "KILLED", 60)
    assert steps_once(client, run.info.run_id) > newest

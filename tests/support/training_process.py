"""``tubelet train`` as a process that tests can watch, kill and compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import torch
from tubelet import storage

from support import wait_until
from support.training import RECIPE, weights_of

STEPS = 60
SETTINGS = [*RECIPE, f"max_steps={STEPS}", "checkpoint_every=5", "retain=20", "workers=2", "ema=0.9"]
SETTINGS += ["dropout=0.1", "optimiser.name=adamw"]


@dataclass
class Train:
    """``tubelet train`` as a process of its own, with a Ray of its own."""

    manifest: str
    out: str
    tracking_uri: str

    def start(self, *options: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
        command = [
            sys.executable,
            "-m",
            "tubelet_jobs",
            "train",
            "--recipe",
            "tiny",
            "--manifest",
            self.manifest,
        ]
        command += ["--out", self.out, "--tracking-uri", self.tracking_uri, *SETTINGS, *options]
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    def run(self, *options: str) -> dict[str, Any]:
        return self.finish(self.start(*options))

    def wait_for_step(self, process: subprocess.Popen[str], step: int) -> None:
        wait_until(lambda: is_complete(self.out, step) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""

    def client(self) -> Any:
        return mlflow.MlflowClient(self.tracking_uri)


def is_complete(out: str, step: int) -> bool:
    """Whether the checkpoint of ``step`` is there, whole."""
    try:
        return "COMPLETE" in storage.list_names(f"{out}/checkpoints/step-{step:08d}")
    except FileNotFoundError:
        return False


def check(train: Train, undisturbed: Path, summary: dict[str, Any]) -> None:
    """Same bits, one MLflow run that ended well, every step in it once."""
    a, b = weights_of(str(undisturbed), STEPS), weights_of(train.out, STEPS)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    client = train.client()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(summary["run_id"], "FINISHED")]
    assert steps_once(client, summary["run_id"]) == STEPS


def steps_once(client: mlflow.MlflowClient, run_id: str) -> int:
    """How many steps a run has, each from the first on being in it once."""
    steps = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    assert sorted(steps) == list(range(1, len(steps) + 1))
    return len(steps)

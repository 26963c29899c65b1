"""The demo: the real jobs one after the other, on moving shapes and on a person's own videos."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow.dataset as ds
import pytest
from support import S3Bucket
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.index import IndexConfig
from tubelet.corpus.manifest import read_manifest
from tubelet.inference.bundle import ModelBundle
from tubelet.storage.local_s3 import LocalS3
from tubelet_jobs import evaluate, index
from tubelet_jobs.demo import DemoConfig, next_commands, run_demo, run_jobs, shapes
from tubelet_jobs.demo_corpus import MOTIONS, encode, write_corpus
from tubelet_jobs.demo_loop import run_loop
from tubelet_jobs.demo_steps import Places, Step, Steps, steps_summary

TUBELET = Path(sys.executable).with_name("tubelet")


def _rows(uri: str) -> list[dict[str, Any]]:
    filesystem, path = storage.filesystem(uri)
    rows: list[dict[str, Any]] = ds.dataset(path, filesystem=filesystem).to_table().to_pylist()
    return rows


def _check_jobs(steps: list[Step]) -> dict[str, dict[str, Any]]:
    assert [step.job for step in steps] == ["index", "train", "evaluate", "label", "review"]
    return {step.job: step.summary for step in steps}


@pytest.mark.usefixtures("ray_cluster")
def test_small_demo_runs_all_jobs_on_s3(s3: S3Bucket, tmp_path: Path) -> None:
    config = DemoConfig(
        per_class=4,
        inbox=3,
        broken=4,
        views="1x1",
        overrides=("max_steps=2", "batch=8", "checkpoint_every=2"),
    )
    done = _check_jobs(run_jobs(config, shapes(config, tmp_path, s3.uri), tmp_path))
    assert (done["index"]["objects"], done["index"]["errors"]) == (24, 0)
    assert done["train"]["steps"] == 2
    assert 0 <= done["evaluate"]["top1"] <= 1
    assert (done["label"]["objects"], done["label"]["ok"], done["label"]["errors"]) == (7, 3, 4)
    rows = _rows(f"{s3.uri}/predictions")
    assert Counter(row["status"] for row in rows) == {"ok": 3, "error": 4}
    assert {row["label"] for row in rows if row["status"] == "ok"} <= set(MOTIONS)
    assert all(row["error_code"] for row in rows if row["status"] == "error")
    assert "<html" in (tmp_path / "review.html").read_text("utf-8")
    assert (tmp_path / "mlflow.db").exists()
    _check_plain_files(tmp_path)
    quick = ("max_steps=2", "batch=8", "checkpoint_every=2")
    steps, found = run_loop(tmp_path, "tiny", quick, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert steps_summary(steps, "index")["labelled"] == 24 + 3
    assert found["compared"]["rows"] == done["evaluate"]["objects"]
    assert "<html" in Path(found["page"]).read_text("utf-8")


def _check_plain_files(out: Path) -> None:
    """What the jobs wrote to the store lies in the folder, too, about the videos in it."""
    manifest = read_manifest(str(out / "manifest"))
    left = [*manifest.select(["uri", "etag"]).to_pylist(), *_rows(str(out / "predictions"))]
    assert len(left) == 24 + 7
    for row in left:
        found = storage.stat(row["uri"])
        assert Path(row["uri"]).is_relative_to(out / "corpus")
        assert found is not None
        assert found.etag == row["etag"]
    assert ModelBundle.load(out / "model").labels == {"label": sorted(MOTIONS)}
    assert '"link":"file:///' in (out / "review.html").read_text("utf-8").replace('": "', '":"')
    assert list(next_commands(DemoConfig(out=str(out)), out))[-1][:2] == ["demo", "--loop"]


@pytest.mark.usefixtures("ray_cluster")
def test_own_videos_in_class_folders(tmp_path: Path) -> None:
    write_corpus(tmp_path / "mine", per_class=4, inbox=0, broken=0, seed=5)
    config = DemoConfig(
        out=str(tmp_path / "out"),
        videos=str(tmp_path / "mine/labelled"),
        split="train=0.7,test=0.3",
        overrides=("max_steps=2", "batch=8", "checkpoint_every=2", "frames=8", "size=48", "short_side=55"),
        views="1x1",
    )
    summary = run_demo(config)
    assert 0 <= summary["top1"] <= 1
    assert summary["jobs"]["label"]["ok"] == 24
    assert Path(summary["page"]).is_file()
    assert set(read_manifest(str(tmp_path / "out/manifest"))["label"].to_pylist()) == set(MOTIONS)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="belong to --videos"):
        run_demo(DemoConfig(out=out, labels="folders"))
    with pytest.raises(UserError, match="nothing-here"):
        run_demo(DemoConfig(out=out, videos=str(tmp_path / "nothing-here")))


def test_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/thesis.txt").write_text("years of work", "utf-8")
    with pytest.raises(UserError, match="name another folder with --out"):
        run_demo(DemoConfig(out=str(tmp_path)))
    assert (tmp_path / "model/thesis.txt").read_text("utf-8") == "years of work"


@dataclass(frozen=True)
class Trained:
    places: Places
    done: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(ray_cluster: None, s3_server: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The demo at its full size, with the session's S3 server and Ray."""
    out = tmp_path_factory.mktemp("demo")
    config = DemoConfig()
    places = shapes(config, out, "s3://tubelet-test/full-demo")
    return Trained(places, _check_jobs(run_jobs(config, places, out)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_learns_the_motion(trained: Trained) -> None:
    # Six seeds gave 0.88 to 0.99; the last bits of a processor's arithmetic are as good as a seed.
    assert trained.done["evaluate"]["top1"] >= 0.80


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_inbox_gets_the_motions_that_nothing_in_it_tells(trained: Trained, tmp_path: Path) -> None:
    config = DemoConfig()
    corpus = write_corpus(
        tmp_path, per_class=config.per_class, inbox=config.inbox, broken=config.broken, seed=config.seed
    )
    rows = [row for row in _rows(trained.places.predictions) if row["status"] == "ok"]
    right = [row["label"] == corpus.inbox["inbox/" + row["uri"].rsplit("/", 1)[-1]] for row in rows]
    assert len(rows) == config.inbox
    assert sum(right) / len(right) >= 0.8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_repeated_frame_tells_nothing(trained: Trained, s3: S3Bucket, tmp_path: Path) -> None:
    """The trained model, on the test videos with one frame of each repeated for as long: near chance."""
    table = read_manifest(trained.places.manifest)
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    assert len(rows) >= 50
    for row in rows:
        data = _frozen(storage.read_bytes(row["uri"]), seed=row["key"])
        storage.write_bytes(f"{s3.uri}/frozen/{row['path']}", data)
    steps = Steps()
    config = IndexConfig(
        src=f"{s3.uri}/frozen", out=f"{s3.uri}/m", labels="folders", split="train=0,val=0,test=1"
    )
    steps.run(index.command, config)
    options = evaluate.EvaluateOptions(
        model=trained.places.model,
        manifest=f"{s3.uri}/m",
        views=(4, 1),
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    steps.run(evaluate.command, options)
    # Chance is 1/6; three standard deviations over 60 videos are 0.14.
    assert steps.done[-1].summary["top1"] <= 0.32


def _frozen(data: bytes, seed: str) -> bytes:
    with av.open(io.BytesIO(data)) as container:
        frames: list[npt.NDArray[np.uint8]] = [
            frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)
        ]
    chosen = frames[int(seed[:8], 16) % len(frames)]
    return encode(np.repeat(chosen[None], len(frames), axis=0), 20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_command_runs_twice_in_one_folder(tmp_path: Path) -> None:
    """With a person's own account around it, too: the embedded server must not see that."""
    env = {**os.environ, "AWS_SESSION_TOKEN": "not-for-this-server", "AWS_PROFILE": "work"}
    for _ in range(2):
        done = subprocess.run(
            [TUBELET, "demo", "--out", "out", "max_steps=2", "checkpoint_every=2"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=550,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert json.loads(line)["jobs"]["label"]["errors"] == 4
        assert (tmp_path / "out/review.html").is_file()
        assert "mlflow ui --backend-store-uri sqlite:////" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_that_the_demo_prints_work_as_they_stand(tmp_path: Path) -> None:
    def run(line: str, limit_s: float) -> tuple[float, str]:
        started_s = time.monotonic()
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=limit_s, check=False
        )
        assert done.returncode == 0, done.stderr
        return time.monotonic() - started_s, done.stdout + done.stderr

    _, said = run(f"{TUBELET} demo --out out max_steps=2 checkpoint_every=2", 600)
    label, review, loop = [line.strip() for line in said.partition("To try next:")[2].splitlines()[1:4]]
    print("label", run(label, 120)[0])
    serving = subprocess.Popen(
        shlex.split(review), cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert serving.stderr is not None
    for line in serving.stderr:
        if "open http" in line:
            visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with visitor.open(line.split()[-1], timeout=30) as page:
                assert b"<html" in page.read()
            serving.send_signal(signal.SIGINT)
    assert serving.wait(60) == 130
    seconds, said = run(loop, 240)
    summary = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    assert summary["jobs"]["index"]["labelled"] == 360 + 12
    assert Path(summary["page"]).is_file()
    assert {"gained", "lost", "p"} <= set(summary["compared"])
    print("loop", seconds, summary["compared"])

"""`tubelet submit` against a real Ray head that asks for a token, through the command line."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import S3Bucket
from support.labelling import tiny_bundle
from tubelet import storage
from tubelet.corpus.manifest import read_manifest
from tubelet_jobs.demo_corpus import write_corpus
from tubelet_jobs.remote.client import connect

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    address: str
    token: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head on free ports with token authentication and a home of its own; it ends with its own process."""
    # A machine busy with other things may miss the half minute that Ray gives its head to come up: try again.
    for attempt in range(3):
        # Ray's sockets live below the folder, and their paths must stay short.
        folder = Path(tempfile.mkdtemp(prefix="tbr", dir="/tmp"))
        process, running = _start_head(folder)
        try:
            if _is_up(process, folder / "log"):
                yield running
                return
            assert attempt < 2, (folder / "log").read_text("utf-8")[-3000:]
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


def _start_head(folder: Path) -> tuple[subprocess.Popen[bytes], Head]:
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    token = secrets.token_hex(16)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "HOME": str(folder)}
    env |= {"PATH": f"{BIN}:{env['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    env["PYTHONPATH"] = str(_image(folder / "image"))
    env["RAY_agent_register_timeout_ms"] = "120000"
    flags = [f"--{name}={port}" for name, port in ports.items()]
    flags += ["--head", "--block", "--num-cpus=4", "--object-store-memory=200000000"]
    flags += [f"--temp-dir={folder}/r", "--include-dashboard=true"]
    flags += ["--min-worker-port=0", "--max-worker-port=0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([BIN / "ray", "start", *flags], env=env, stdout=log, stderr=log)
    return process, Head(f"http://127.0.0.1:{ports['dashboard-port']}", token)


def _image(folder: Path) -> Path:
    """Packages as an old image has them: whoever imports them, rather than what was sent, fails."""
    for name in ("tubelet", "tubelet_jobs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('the copy of the image')\n", "utf-8")
    return folder


def _is_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s and process.poll() is None:
        if "Ray runtime started" in log.read_text("utf-8"):
            return True
        time.sleep(0.5)
    return False


_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start(head: Head, *args: str, token: str | None = None, **env: str) -> subprocess.Popen[str]:
    full = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    full |= {"RAY_AUTH_TOKEN": head.token if token is None else token, **env}
    return subprocess.Popen(
        [BIN / "tubelet", "submit", "--address", head.address, *args],
        env=full,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _submit(
    head: Head, *args: str, token: str | None = None, deadline_s: float = 280, **env: str
) -> subprocess.CompletedProcess[str]:
    process = _start(head, *args, token=token, **env)
    out, err = process.communicate(timeout=deadline_s)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_corpus(folder, per_class=1, inbox=1, broken=1)
    return folder


def test_job_runs_there_and_its_summary_comes_back(head: Head, s3: S3Bucket, videos: Path) -> None:
    storage.upload_dir(videos / "labelled", f"{s3.uri}/videos")
    labels = videos / "labels.csv"  # a local file, which travels along
    done = _submit(head, "--", "index", f"{s3.uri}/videos", "--out", f"{s3.uri}/m", "--labels", str(labels))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["objects"], summary["ok"]) == (6, 6)
    assert read_manifest(f"{s3.uri}/m")["label"].null_count == 0
    assert s3.server.secret_key not in done.stdout + done.stderr
    assert head.token not in done.stdout + done.stderr


@pytest.mark.slow
def test_workers_get_the_code_that_was_sent(head: Head, s3: S3Bucket, videos: Path, tmp_path: Path) -> None:
    storage.upload_dir(videos / "labelled", f"{s3.uri}/videos")
    storage.upload_dir(tiny_bundle(tmp_path / "model"), f"{s3.uri}/model")
    places = ["--model", f"{s3.uri}/model", "--out", f"{s3.uri}/labels"]
    tracking = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    job = ["label", f"{s3.uri}/videos", *places, *tracking]
    done = _submit(head, "--shared-fs", str(tmp_path), "--", *job, deadline_s=800)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ok"] == 6


def test_failed_job_gives_status_1_and_its_error(head: Head, s3: S3Bucket) -> None:
    done = _submit(head, "--", "index", f"{s3.uri}/nothing-here", "--out", f"{s3.uri}/m")
    assert done.returncode == 1
    assert "nothing-here" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_wait_prints_the_id(
    head: Head, s3: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(head.token, "utf-8")
    args = ("--no-wait", "--", "index", f"{s3.uri}/nothing", "--out", f"{s3.uri}/m")
    done = _submit(head, *args, token="", RAY_AUTH_TOKEN_PATH=str(file))
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert json.loads(last)["submission_id"] == first
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    assert connect(head.address).get_job_info(first).submission_id == first


def test_ctrl_c_stops_the_job(
    head: Head, s3: S3Bucket, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (videos / "labelled/left/0000.mp4").read_bytes()
    with ThreadPoolExecutor(8) as pool:  # enough work that the signal comes before its end
        for number in range(1500):
            pool.submit(storage.write_bytes, f"{s3.uri}/many/{number}.mp4", data + bytes(number))
    process = _start(head, "--", "index", f"{s3.uri}/many", "--out", f"{s3.uri}/m", "--workers", "1")
    assert process.stderr is not None
    job_id = ""
    for line in process.stderr:
        if line.startswith("submitted "):
            job_id = line.split()[1]
        if line.startswith("listing"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err  # as a shell tells an interrupt
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    assert connect(head.address).get_job_status(job_id) == "STOPPED"
    assert not storage.exists(f"{s3.uri}/m/part-00000.parquet")


@pytest.mark.parametrize(("token", "said"), [("wrong-token", "refuses this token"), ("", "asks for a token")])
def test_token_is_asked_for(head: Head, tmp_path: Path, token: str, said: str) -> None:
    done = _submit(head, "--", "index", "s3://b/v", "--out", "s3://b/m", token=token, HOME=str(tmp_path))
    assert done.returncode == 1
    assert said in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "wrong-token" not in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_at_the_address() -> None:
    port = _free_ports(1)[0]
    done = _submit(Head(f"http://127.0.0.1:{port}", "x"), "--", "index", "s3://b/v", "--out", "s3://b/m")
    assert done.returncode == 1
    assert "nobody answers" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_of_the_job_is_seen_before_anything_is_sent() -> None:
    nowhere = Head("http://127.0.0.1:1", "x")
    done = _submit(nowhere, "--", "train", "--manifesto", "s3://b/m")
    assert done.returncode == 2
    assert "--manifesto" in done.stderr

"""`tubelet submit` against a real Ray head that asks for a token, through the command line."""

from __future__ import annotations

import io
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
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient
from support import S3Bucket, free_port, mlflow_server, wait_until
from support.labelling import tiny_bundle
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.manifest import read_manifest
from tubelet.storage.local_s3 import LocalS3
from tubelet_jobs.cli import run
from tubelet_jobs.demo_corpus import write_corpus
from tubelet_jobs.remote.reach import check_loopback

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    address: str
    token: str
    logs: Path = Path()


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
    return process, Head(f"http://127.0.0.1:{ports['dashboard-port']}", token, folder / "r")


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


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def _tubelet(head: Head, *args: str, token: str | None = None, **env: str) -> Done:
    """The command line, in this process: it spares seconds of imports each time."""
    job, rest = args[0], args[1:]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        for name, value in {"RAY_AUTH_TOKEN": head.token if token is None else token, **env}.items():
            patch.setenv(name, value)
        where = ["--address", head.address]
        words = [job, *where, *rest] if job == "submit" else [job, *rest, *where]
        status = run(words)
    assert head.token not in out.getvalue() + err.getvalue()
    return Done(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_corpus(folder, per_class=1, inbox=1, broken=1)
    return folder


@pytest.fixture(scope="module")
def many(s3_server: LocalS3, videos: Path) -> str:
    """More videos than are indexed before anybody has stopped it."""
    uri = f"s3://tubelet-test/{secrets.token_hex(4)}"
    data = (videos / "labelled/left/0000.mp4").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        for number in range(1000):
            pool.submit(storage.write_bytes, f"{uri}/{number}.mp4", data + bytes(number))
    return uri


def test_job_runs_there_and_its_summary_comes_back(head: Head, s3: S3Bucket, videos: Path) -> None:
    storage.upload_dir(videos / "labelled", f"{s3.uri}/videos")
    labels = videos / "labels.csv"  # a local file, which travels along
    job = ["index", f"{s3.uri}/videos", "--out", f"{s3.uri}/m", "--labels", str(labels)]
    done = _tubelet(head, "submit", "--name", "first", "--", *job)
    assert done.status == 0, done.err
    assert (done.summary["objects"], done.summary["ok"]) == (6, 6)
    assert read_manifest(f"{s3.uri}/m")["label"].null_count == 0
    assert s3.server.secret_key not in done.out + done.err

    status = _tubelet(head, "jobs", "status", "first")
    assert status.status == 0, status.err
    job_id = status.summary["submission_id"]
    assert (status.summary["status"], status.summary["mlflow_run"]) == ("SUCCEEDED", None)
    link = f"{head.address}/#/jobs/{job_id}"
    assert link in done.err
    assert link == status.summary["dashboard"]
    logs = _tubelet(head, "jobs", "logs", job_id)
    assert json.loads(logs.out.splitlines()[-1]) == done.summary
    again = _tubelet(head, "jobs", "logs", job_id, "--follow")
    assert (again.status, again.summary) == (0, done.summary)
    assert job_id in [job["submission_id"] for job in _tubelet(head, "jobs", "list").summary["jobs"]]

    # Nothing of what let the job read the bucket is where others may look: that is the file's matter alone.
    info = _client(head).get_job_info(job_id)
    assert s3.server.secret_key not in str(info.dict())
    logged = [path for path in head.logs.glob("session_2*/logs/**/*") if path.is_file()]
    assert len(logged) > 10
    secret = s3.server.secret_key.encode()
    assert [path.name for path in logged if secret in path.read_bytes()] == []
    holders = list(head.logs.glob("session_2*/runtime_resources/**/variables.json"))
    assert holders
    assert {path.stat().st_mode & 0o777 for path in holders} == {0o600}


def _client(head: Head) -> JobSubmissionClient:
    return JobSubmissionClient(head.address, headers={"Authorization": f"Bearer {head.token}"})


@pytest.mark.slow
def test_workers_get_the_code_that_was_sent(head: Head, s3: S3Bucket, videos: Path, tmp_path: Path) -> None:
    storage.upload_dir(videos / "labelled", f"{s3.uri}/videos")
    storage.upload_dir(tiny_bundle(tmp_path / "model"), f"{s3.uri}/model")
    places = ["--model", f"{s3.uri}/model", "--out", f"{s3.uri}/labels"]
    port = free_port()
    job = ["label", f"{s3.uri}/videos", *places, "--tracking-uri", f"http://localhost:{port}"]
    with mlflow_server(tmp_path, port):
        done = _tubelet(head, "submit", "--name", "labels", "--", *job)
        assert done.status == 0, done.err
        assert done.summary["ok"] == 6
        link = _tubelet(head, "jobs", "status", "labels").summary["mlflow_run"]
        assert link.endswith(f"/runs/{done.summary['run_id']}")
        assert link.startswith(f"http://localhost:{port}/#/experiments/")


@pytest.mark.slow
def test_extra_packages_are_installed_for_the_job(head: Head, s3: S3Bucket) -> None:
    """What the nodes cannot find ends the job before it starts, with what pip said."""
    job = ["index", f"{s3.uri}/nothing", "--out", f"{s3.uri}/m"]
    done = _tubelet(head, "submit", "--pip", "toolz==1.0.0", "--", *job)
    assert "nothing" in done.err  # it ran, and the bucket is empty
    done = _tubelet(head, "submit", "--pip", "toolz==999.0", "--", *job)
    assert done.status == 1
    assert "toolz==999.0" in done.err


def test_failed_job_gives_status_1_and_its_error(head: Head, s3: S3Bucket, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(head.token, "utf-8")
    job = ["index", f"{s3.uri}/nothing-here", "--out", f"{s3.uri}/m"]
    done = _tubelet(head, "submit", "--", *job, token="", RAY_AUTH_TOKEN_PATH=str(file))
    assert done.status == 1
    assert "nothing-here" in done.err
    assert "Traceback" not in done.err


def test_a_job_left_to_itself_is_stopped_by_its_name(head: Head, s3: S3Bucket, many: str) -> None:
    job = ["index", many, "--out", f"{s3.uri}/m", "--workers", "1"]
    done = _tubelet(head, "submit", "--no-wait", "--name", "left-alone", "--", *job)
    assert done.status == 0, done.err
    first, last = done.out.splitlines()
    assert json.loads(last)["submission_id"] == first
    client = _client(head)
    wait_until(lambda: "listing" in client.get_job_logs(first), 120)
    stopped = _tubelet(head, "jobs", "stop", "left-alone")
    assert (stopped.status, stopped.summary["status"]) == (0, "STOPPED"), stopped.err
    assert not storage.exists(f"{s3.uri}/m/part-00000.parquet")
    assert "has ended already" in _tubelet(head, "jobs", "stop", first).err


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_signal_stops_the_job(
    head: Head, s3: S3Bucket, many: str, tmp_path: Path, number: signal.Signals
) -> None:
    job = ["index", many, "--out", f"{s3.uri}/m", "--workers", "1"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [BIN / "tubelet", "submit", "--address", head.address, "--", *job],
        env={**env, "RAY_AUTH_TOKEN": head.token, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    job_id = ""
    for line in process.stderr:
        if line.startswith("submitted "):
            job_id = line.split()[1].rstrip(":")
        if line.startswith("listing"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err  # as a shell tells a signal
    assert [line for line in err.splitlines() if line.startswith("error:")] == [
        f"error: stopped by {number.name}"
    ]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
    assert _client(head).get_job_status(job_id) == "STOPPED"
    # The job there ended as any does: what it found is kept for the same command, nobody holds the output.
    assert not storage.exists(f"{s3.uri}/m/part-00000.parquet")
    assert not storage.list_names(f"{s3.uri}/m/_lock")


@pytest.mark.parametrize(("token", "said"), [("wrong-token", "refuses this token"), ("", "asks for a token")])
def test_token_is_asked_for(head: Head, tmp_path: Path, token: str, said: str) -> None:
    for words in (["submit", "--", "index", "s3://b/v", "--out", "s3://b/m"], ["jobs", "list"]):
        done = _tubelet(head, *words, token=token, HOME=str(tmp_path))
        assert done.status == 1
        assert said in done.err
        assert "RAY_AUTH_TOKEN" in done.err
        assert "wrong-token" not in done.err
        assert "Traceback" not in done.err


def test_servers_of_this_machine_are_refused_for_nodes_elsewhere(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head behind a port-forward answers at 127.0.0.1 too: what counts is where it says that it is."""
    servers = ["AWS_ENDPOINT_URL http://127.0.0.1:9000"]
    headers = {"Authorization": f"Bearer {head.token}"}
    check_loopback(servers, head.address, headers)
    with pytest.raises(UserError, match="does not say"):
        check_loopback(servers, head.address, {})
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "a laptop with the same private address")
        with pytest.raises(UserError, match="elsewhere"):
            check_loopback(servers, head.address, headers)
    monkeypatch.setattr("psutil.net_if_addrs", dict)
    job = ["index", "s3://b/v", "--out", "s3://b/m"]
    done = _tubelet(head, "submit", "--", *job, AWS_ENDPOINT_URL="http://127.0.0.1:9000")
    assert done.status == 1
    assert "AWS_ENDPOINT_URL http://127.0.0.1:9000 is this machine as seen from itself" in done.err
    assert "submitted" not in done.err


def test_nobody_at_the_address() -> None:
    nobody = Head(f"http://127.0.0.1:{free_port()}", "no-token")
    for words in (["submit", "--", "index", "s3://b/v", "--out", "s3://b/m"], ["jobs", "list"]):
        done = _tubelet(nobody, *words)
        assert done.status == 1
        assert "nobody answers" in done.err
        assert "Traceback" not in done.err


def test_wrong_usage_is_seen_before_anything_is_sent() -> None:
    nowhere = Head("http://127.0.0.1:1", "no-token")
    done = _tubelet(nowhere, "submit", "--", "train", "--manifesto", "s3://b/m")
    assert done.status == 2
    assert "--manifesto" in done.err
    for words, said in ((["stop"], "needs a job"), (["list", "first"], "takes no job")):
        done = _tubelet(nowhere, "jobs", *words)
        assert done.status == 2
        assert said in done.err

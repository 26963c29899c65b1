"""MLflow as `kuberay/base/mlflow.yaml` has it, on a real PostgreSQL and a real S3 server, in a browser."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from support import S3Bucket, free_port, wait_until
from support.cluster import made_secrets, server_of
from tubelet import storage
from tubelet.tracking import Tracker


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """Debian's PostgreSQL with an empty database, run by its own user; gives its address."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries or os.getuid() != 0:
        pytest.skip("there is no PostgreSQL that root could start: apt-get install postgresql")
    port, password, data = free_port(), secrets.token_hex(8), Path(f"/tmp/tpg{secrets.token_hex(4)}")

    def run(program: str, *args: str) -> None:
        command = ["runuser", "-u", "postgres", "--", binaries[-1] / program, *args]
        subprocess.run(command, check=True, cwd="/", timeout=120, stdout=subprocess.DEVNULL)

    data.mkdir(mode=0o700)
    shutil.chown(data, "postgres", "postgres")
    (data / "password").write_text(password, "utf-8")
    shutil.chown(data / "password", "postgres", "postgres")
    try:
        run("initdb", "-D", f"{data}/db", "-A", "scram-sha-256", f"--pwfile={data}/password", "-E", "UTF8")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {data}"
        run("pg_ctl", "-D", f"{data}/db", "-o", options, "-l", f"{data}/log", "-w", "start")
        yield f"postgresql+psycopg://postgres:{password}@127.0.0.1:{port}/postgres"
    finally:
        with suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-D", f"{data}/db", "-m", "immediate", "stop")
        shutil.rmtree(data, ignore_errors=True)


@pytest.mark.slow
def test_two_runs_side_by_side(s3: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with _postgres(tmp_path) as address:
        made = made_secrets(tmp_path, address)
        login = made["tubelet-env"]
        user, password = login["MLFLOW_TRACKING_USERNAME"], login["MLFLOW_TRACKING_PASSWORD"]
        ini = tmp_path / "basic_auth.ini"
        ini.write_text(made["mlflow"]["basic_auth.ini"], "utf-8")
        server = server_of("mlflow.yaml")
        given = [
            argument for argument in server["args"] if not argument.startswith(("--host", "--port", "--art"))
        ]
        flags = [f"--port={port}", "--host=127.0.0.1", f"--artifacts-destination={s3.uri}/mlflow"]
        env = {
            **os.environ,
            **{
                item["name"]: item["value"]
                for item in server["env"]
                if item["name"].startswith("MLFLOW_SERVER")
            },
            "MLFLOW_AUTH_CONFIG_PATH": str(ini),
            "MLFLOW_BACKEND_STORE_URI": made["mlflow"]["backend-store-uri"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": made["mlflow"]["flask-secret-key"],
        }
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *given, *flags],
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(lambda: process.poll() is not None or _answers(port, "/health") == 200, 240)
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
            assert _answers(port, path) == 401  # nobody looks without the login
            assert _answers(port, path, f"{user}:wrong") == 401
            assert _answers(port, path, f"{user}:{password}") == 200
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            uri = f"http://127.0.0.1:{port}"
            runs = [_run(uri, name, rate) for name, rate in (("slow rate", 1e-4), ("fast rate", 1e-3))]
            assert len(list(storage.list_objects(f"{s3.uri}/mlflow"))) >= len(runs)  # their artifacts
            _look(uri, runs, (user, password))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(port: int, path: str, login: str | None = None) -> int:
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 0


def _run(uri: str, name: str, rate: float) -> str:
    tracker = Tracker.start(uri, "side by side", name, params={"lr": rate}, system_metrics=False)
    for step in range(20):
        tracker.log_metrics({"loss": 2 - rate * 1000 * step / 20}, step)
    tracker.log_text("what was learnt", "notes.txt")
    tracker.finish("FINISHED")
    return tracker.run_id


def _look(uri: str, runs: list[str], login: tuple[str, str]) -> None:
    """Both runs on one page; set TUBELET_SCREENSHOTS=FOLDER to look at it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "this test drives a real browser: install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            http_credentials={"username": login[0], "password": login[1]},
            viewport={"width": 1400, "height": 1000},
        )
        listed = ",".join(f'"{run}"' for run in runs)
        page.goto(f'{uri}/#/compare-runs?runs=[{listed}]&experiments=["1"]')
        for text in ("slow rate", "fast rate", "lr", "loss"):
            expect(page.get_by_text(text, exact=True).first).to_be_visible(timeout=60_000)
        if folder := os.environ.get("TUBELET_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "two-runs.png", full_page=True)
        browser.close()

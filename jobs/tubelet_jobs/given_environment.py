"""Variables that travel to the nodes of a cluster in a file of their own.

Ray writes a runtime environment's ``env_vars`` into logs that everybody on a node may read, and shows them
with the job. What reaches the store and the tracking server is secret, so it goes in a package beside the
code: Ray keeps that out of its logs, and unpacks the file readable to its owner alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "tubelet_environment"
# What Ray calls in each worker before any work: needs the standard library only.
HOOK = f"{__name__}.take"
_FILE = "variables.json"


def write(variables: Mapping[str, str], folder: Path) -> Path:
    """Make the package below ``folder``; returns its path, one of Ray's ``py_modules``."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    target = package / _FILE
    target.touch(mode=0o600)
    target.write_text(json.dumps(dict(variables)), "utf-8")
    return package


def is_given() -> bool:
    """Whether this process was sent such a package."""
    return bool(_files())


def take() -> None:
    """Set the variables that were sent to this process, if any."""
    for file in _files():
        os.environ.update(json.loads(file.read_text("utf-8")))


def _files() -> list[Path]:
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    return [file for file in (Path(folder) / _FILE for folder in folders) if file.is_file()]

"""Where records wait on this machine for the tracking server: a folder per run, the user's own."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from tubelet.storage.private_folder import make_private


def spool_root() -> Path:
    """Of all runs of this user; it is gone while none waits."""
    return Path(tempfile.gettempdir()) / f"tubelet-spool-{os.getuid()}"


def spool_folder(run_id: str | None) -> tuple[Path, dict[str, Any]]:
    """The spool of an earlier process of this run where there is one, else a new folder."""
    root = spool_root()
    make_private(root)  # what is logged is read back and sent with the user's credentials
    for path in root.glob("*/state.json") if run_id else ():
        with suppress(ValueError, OSError):
            state = json.loads(path.read_text("utf-8"))
            if run_id in (state.get("run_id"), state.get("key")):
                return path.parent, state
    folder = root / uuid4().hex
    while not folder.exists():
        with suppress(FileNotFoundError):  # another job has just removed the empty root
            make_private(root)
            folder.mkdir()
    return folder, {}

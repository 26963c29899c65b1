"""Where records wait on this machine for the tracking server: a folder per run, the user's own."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from tubelet.config import UserError
from tubelet.storage.errors import local_writes


def spool_root() -> Path:
    """Of all runs of this user; it is gone while none waits."""
    return Path(tempfile.gettempdir()) / f"tubelet-spool-{os.getuid()}"


def spool_folder(run_id: str | None) -> tuple[Path, dict[str, Any]]:
    """The spool of an earlier process of this run where there is one, else a new folder."""
    root = spool_root()
    _make_root(root)
    for path in root.glob("*/state.json") if run_id else ():
        with suppress(ValueError, OSError):
            state = json.loads(path.read_text("utf-8"))
            if run_id in (state.get("run_id"), state.get("key")):
                return path.parent, state
    folder = root / uuid4().hex
    while not folder.exists():
        with suppress(FileNotFoundError):  # another job has just removed the empty root
            _make_root(root)
            folder.mkdir()
    return folder, {}


def _make_root(root: Path) -> None:
    with local_writes(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(root)


def _check_own(folder: Path) -> None:
    """What is logged is read back and sent with the user's credentials: nobody else may write it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(
            f"{folder} is not a folder of yours: remove it, or set TMPDIR to a folder that only you can write"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)

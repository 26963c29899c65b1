"""Folders of this machine that nobody but their owner may look into."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tubelet.config import UserError
from tubelet.storage.errors import local_writes


def make_private(folder: Path) -> None:
    """Make ``folder`` if it is not there, and close it to others (0700).

    Raises:
        UserError: something of that name is there, and it is no folder of this user.
    """
    with local_writes(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(
            f"{folder} is not a folder of yours: remove it, or set TMPDIR to a folder that only you can write"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)

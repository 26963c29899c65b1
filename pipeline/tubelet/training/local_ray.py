"""Whether a Ray that this process has started still runs."""

from __future__ import annotations

import psutil

_SERVERS = {"gcs_server", "raylet"}


class LocalRayError(Exception):
    """Ray's own processes on this machine have ended, and with them all that ran in them."""


class LocalRay:
    """The processes of a local Ray; of a cluster that was joined there are none here.

    A signal to a whole group of processes ends them, too (``timeout``, systemd, Slurm). Calls of Ray would
    then wait for a minute, until Ray ends this process without a word to anybody.
    """

    def __init__(self) -> None:
        self._servers = [one for one in psutil.Process().children() if one.name() in _SERVERS]

    @property
    def is_ours(self) -> bool:
        """Whether this process has started a Ray, and not joined a cluster."""
        return bool(self._servers)

    def check(self) -> None:
        """Look whether they run.

        Raises:
            LocalRayError: one does not.
        """
        for one in self._servers:
            try:
                runs = one.is_running() and one.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                runs = False
            if not runs:
                raise LocalRayError("Ray's processes on this machine have ended")

"""The environment of a job: what of it other nodes get, and that it means the same in any working folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

from tubelet.config import UserError
from tubelet.tracking.registry import check_uri

# What a worker on another node needs to reach the same store and the same tracking server.
_FORWARDED = ("AWS_", "GOOGLE_APPLICATION_CREDENTIALS", "MLFLOW_", "TUBELET_")
# These name files or profiles of this machine.
_OF_THIS_MACHINE = frozenset(
    {
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CA_BUNDLE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "MLFLOW_TRACKING_CLIENT_CERT_PATH",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
    }
)
_PATHS = frozenset(
    {
        *(name for name in _OF_THIS_MACHINE if not name.endswith("PROFILE")),
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TUBELET_CACHE",
    }
)


def forwarded(environ: Mapping[str, str], *, same_machine: bool) -> dict[str, str]:
    """What of ``environ`` is set on the nodes as well.

    Args:
        environ: of this process.
        same_machine: this process runs on a node of the cluster, where what names files and profiles holds.
    """
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(_FORWARDED) and (same_machine or name not in _OF_THIS_MACHINE)
    }


def make_paths_absolute(environ: MutableMapping[str, str]) -> None:
    """Rewrite relative paths in ``environ``, so that they hold in processes with other working folders."""
    for name in _PATHS & environ.keys():
        if environ[name]:
            environ[name] = os.path.abspath(os.path.expanduser(environ[name]))
    if environ.get("PYTHONPATH"):
        # An empty entry is the working folder: so says Python, and who wrote it meant it.
        entries = environ["PYTHONPATH"].split(os.pathsep)
        environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries)
    if environ.get("MLFLOW_TRACKING_URI"):
        with suppress(UserError):  # the job that uses it says what is wrong with it
            environ["MLFLOW_TRACKING_URI"] = check_uri(environ["MLFLOW_TRACKING_URI"])

"""What is sent to a cluster: the job's arguments, checked, and the files that travel along."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
from tubelet import storage
from tubelet.config import UserError

# Jobs that make sense on a cluster; `demo` brings a server of its own, `bench` measures this machine.
_JOBS = ("index", "prepare", "train", "evaluate", "label", "embed", "review")
# Parameters that are places, with the flag to name in an error.
_PLACES = {
    "src": "SRC",
    "source": "SRC",
    "predictions": "PREDICTIONS",
    "manifest": "--manifest",
    "out": "--out",
    "model": "--model",
    "models": "--model",
    "init": "--init",
    "features": "--features",
}
# Variables that name a server.
_SERVERS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_TRACKING_URI",
)
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")
# Small files that the job reads at its start: they travel with the code.
_SHIPPED = ("recipe", "labels", "listing")
# Jobs that use a tracking server only where one is named, for their report or for models:/ and runs:/.
_TRACK_IF_ASKED = ("embed", "index")


@dataclass(frozen=True)
class JobPlan:
    """What is sent: the job's arguments as the cluster gets them, and the files that travel along."""

    argv: tuple[str, ...]
    files: Mapping[str, Path]
    """Name below the working folder there -> file here."""
    loopback: tuple[str, ...] = ()
    """Servers named by an address that means this machine here, and the node itself there."""

    @property
    def entrypoint(self) -> str:
        """The shell command that the head runs in the working folder."""
        # -P: the code that was sent is on PYTHONPATH, and the working folder is no place to import from.
        return shlex.join(["python", "-P", "-m", "tubelet_jobs", *self.argv])


def plan_job(argv: Sequence[str], *, shared: Sequence[str] = (), env: Mapping[str, str]) -> JobPlan:
    """Check a job's arguments against its own command line, and against what other nodes can reach.

    Raises:
        UserError: a job that is not for clusters, a place on this machine alone, a password in an argument.
        click.UsageError: the job itself would refuse its arguments.
    """
    if not argv or argv[0] not in _JOBS:
        raise UserError(f"{' '.join(argv[:1])!r} is no job for a cluster: choose of {', '.join(_JOBS)}")
    params = _parse(argv)
    replaced: dict[str, str] = {}
    files: dict[str, Path] = {}
    for name, flag in _PLACES.items():
        for value in _values(params.get(name)):
            replaced[value] = _reachable(value, flag, shared)
    for name in _SHIPPED:
        for value in _values(params.get(name)):
            if not storage.is_remote(value) and Path(value).is_file():
                target = f"files/{name}{Path(value).suffix}"
                files[target], replaced[value] = Path(value), target
    servers = {name: env[name] for name in _SERVERS if env.get(name)}
    if "tracking_uri" in params and (argv[0] not in _TRACK_IF_ASKED or params["tracking_uri"]):
        uri = params["tracking_uri"]
        _check_tracking(uri, shared)
        servers.pop("MLFLOW_TRACKING_URI", None)
        servers["--tracking-uri"] = uri or ""
    _check_passwords(argv)
    loopback = tuple(f"{name} {uri}" for name, uri in servers.items() if _is_loopback(uri))
    return JobPlan(tuple(_swap(word, replaced) for word in argv), files, loopback)


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    """The job's parameters, by its own command line."""
    from tubelet_jobs.app import app

    group = typer.main.get_command(app)
    job = group.get_command(group.make_context("tubelet", [], resilient_parsing=True), argv[0])  # type: ignore[attr-defined]
    if job is None:
        raise UserError(f"this version of tubelet has no job {argv[0]!r}")
    return dict(job.make_context(f"tubelet {argv[0]}", list(argv[1:])).params)


def _values(value: Any) -> Iterable[str]:
    if value is None:
        return ()
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]


def _reachable(value: str, flag: str, shared: Sequence[str]) -> str:
    """``value`` as the nodes can use it."""
    if storage.is_remote(value) or value.startswith(("runs:/", "models:/", "hf:", "timm:")):
        return value
    path = storage.normalise_uri(value)
    if not _below(path, shared):
        raise UserError(
            f"{flag} {value} lies on this machine, where other nodes cannot reach it.\n"
            f"Use s3:// or gs://, or --shared-fs DIR (before --) for a folder that all nodes have mounted."
        )
    return path


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(Path(path).is_relative_to(storage.normalise_uri(folder)) for folder in folders)


def _check_tracking(uri: str | None, shared: Sequence[str]) -> None:
    given = uri or "sqlite:///mlflow.db (the default)"
    parts = urlsplit(uri or "sqlite:")
    if parts.scheme.startswith(("http", "postgresql", "mysql", "mssql")) or uri == "databricks":
        return
    path = parts.path[1:] if parts.scheme == "sqlite" else parts.path
    if not (path.startswith("/") and _below(path, shared)):
        raise UserError(
            f"tracking {given} lies on this machine, where other nodes cannot reach it.\n"
            "Run `mlflow server` and name it: --tracking-uri http://HOST:5000 or MLFLOW_TRACKING_URI."
        )


def _check_passwords(argv: Sequence[str]) -> None:
    """Ray shows a job's command to whoever may look, and keeps it in its logs."""
    for word in argv:
        if _PASSWORD.search(word):
            raise UserError(
                f"{_PASSWORD.sub('://…@', word)} holds a password, which Ray would keep in its logs.\n"
                "Give it by a variable: MLFLOW_TRACKING_PASSWORD with MLFLOW_TRACKING_USERNAME beside it."
            )


def _is_loopback(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _swap(word: str, replaced: Mapping[str, str]) -> str:
    if word in replaced:
        return replaced[word]
    option, equals, value = word.partition("=")
    if equals and option.startswith("--") and value in replaced:
        return f"{option}={replaced[value]}"
    return word

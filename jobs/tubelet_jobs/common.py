"""What every job shares: the common options, the Ray connection, the JSON summary, the error boundary."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", envvar="RAY_ADDRESS", help="Ray cluster to join (default: start one)."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server (default: sqlite:///mlflow.db)."
    ),
]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="Read public buckets without credentials.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the job would do, and stop.")]

# What a worker on another node needs to reach the same store and the same tracking server.
_FORWARDED = ("AWS_", "MLFLOW_", "GOOGLE_APPLICATION_CREDENTIALS", "TUBELET_")


def connect_ray(
    address: str | None, *, num_cpus: int | None = None, object_store_memory: int | None = None
) -> None:
    """Start a local Ray (``None`` or ``"local"``), or join ``address``. Does nothing when connected.

    Environment variables of the store and of MLflow travel to the workers, so that a job behaves the same on
    one machine and on many.
    """
    import ray

    if ray.is_initialized():
        return
    env_vars = {k: v for k, v in os.environ.items() if k.startswith(_FORWARDED)}
    ray.init(
        address=address or "local",
        num_cpus=num_cpus if address in (None, "local") else None,
        object_store_memory=object_store_memory,
        log_to_driver=False,
        logging_level="warning",
        include_dashboard=False if address in (None, "local") else None,
        runtime_env={"env_vars": env_vars},
    )


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print the job's result as one JSON line, the last of stdout."""
    print(json.dumps(summary, default=str, sort_keys=False), flush=True)


def say(message: str) -> None:
    """A line for the person at the terminal: to stderr, so that stdout stays the summary."""
    print(message, file=sys.stderr, flush=True)

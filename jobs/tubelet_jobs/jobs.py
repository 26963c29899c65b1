"""``tubelet jobs``: what was submitted to a Ray cluster, and what became of it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from tubelet.config import Option

from tubelet_jobs.common import print_summary, say
from tubelet_jobs.submit import AddressOption


class JobsOptions(AddressOption):
    """Which job, and what about it."""

    action: Annotated[Literal["list", "status", "logs", "stop"], Option(argument=True)]
    """What to do."""
    name: Annotated[str | None, Option(argument=True, metavar="[JOB]")] = None
    """Its id as `submit` said it or the beginning of that, or its --name (the newest of that name)."""
    follow: Annotated[bool, Option()] = False
    """logs: go on until the job ends, and end with its exit status."""


def command(config: JobsOptions) -> None:
    """What was submitted to a Ray cluster: list it, look at one job, read its log, stop it.

    `status` has the links to the job's page on the dashboard and to its MLflow run. Where the cluster asks
    for a token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Example: tubelet jobs status nightly --address http://head:8265
    """
    if (config.name is None) != (config.action == "list"):
        needs = "takes no job" if config.name else "needs a job: its id or its name"
        raise typer.BadParameter(f"`tubelet jobs {config.action}` {needs}")
    from tubelet_jobs.remote.client import ENDED, check_address, connect, follow, stop
    from tubelet_jobs.remote.listing import find_job, list_jobs, mlflow_link

    address = check_address(config.address)
    client = connect(address)
    if config.name is None:
        jobs = list_jobs(client, address)
        for each in jobs:
            say(each.line())
        print_summary({"jobs": [each.to_dict() for each in jobs]})
        return
    job = find_job(client, address, config.name)
    if config.action == "logs":
        if config.follow:
            raise typer.Exit(follow(client, job.submission_id, stops=False))
        print(client.get_job_logs(job.submission_id), end="", flush=True)
        return
    summary = job.to_dict()
    if config.action == "stop":
        if job.status in ENDED:
            say(f"{job.submission_id} has ended already")
        else:
            say(f"stopping {job.submission_id}")
            summary["status"] = stop(client, job.submission_id)
    else:
        summary["mlflow_run"] = mlflow_link(client.get_job_logs(job.submission_id))
        say(job.line())
        say(f"dashboard: {job.dashboard}")
        say(f"MLflow run: {summary['mlflow_run'] or 'none yet'}")
    print_summary(summary)

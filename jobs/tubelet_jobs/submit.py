"""``tubelet submit``: the same job on a running Ray cluster, through Ray's job API."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer
from tubelet.config import Option, Settings

from tubelet_jobs.common import print_summary, say
from tubelet_jobs.environment import forwarded


class SubmitOptions(Settings):
    """Which job goes where."""

    job: Annotated[tuple[str, ...], Option(argument=True, metavar="-- JOB")]
    """A job and its own options."""
    address: Annotated[str, Option(envvar="RAY_API_SERVER_ADDRESS")]
    """The head: http://HEAD:8265."""
    wait: Annotated[bool, Option(flag="--wait/--no-wait")] = True
    """Follow the job, or print its id and go."""
    shared_fs: Annotated[tuple[str, ...], Option(metavar="DIR")] = ()
    """A folder that all nodes have mounted here, too."""
    dry_run: Annotated[bool, Option()] = False
    """Say what would be sent, and stop."""


def command(config: SubmitOptions) -> None:
    """Run a job on a Ray cluster: the code travels along, logs come back, and so does the exit status.

    AWS_*, MLFLOW_* and TUBELET_* of this shell are set there as well. Ctrl-C stops the job. Where the cluster
    asks for a token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Places that other nodes cannot
    reach are refused; for folders that all nodes have mounted, say so with --shared-fs.

    Example: tubelet submit --address http://head:8265 -- train --recipe tiny --manifest s3://b/m --out s3://b/run1
    """
    from tubelet_jobs.remote.client import connect, follow, send
    from tubelet_jobs.remote.plan import plan_job

    address, env = config.address, forwarded(os.environ, same_machine=False)
    plan = plan_job(config.job, address=address, shared=config.shared_fs, env=env)
    say(f"{address}: tubelet {shlex.join(plan.argv)}")
    say(f"set there: {', '.join(sorted(env)) or 'nothing'}")
    if config.dry_run:
        print_summary({"dry_run": True, "entrypoint": plan.entrypoint, "files": sorted(plan.files)})
        return
    client = connect(address)
    job_id = send(client, plan, env)
    say(f"submitted {job_id}")
    if not config.wait:
        print(job_id)
        print_summary({"submission_id": job_id, "address": address})
        return
    status = follow(client, job_id)
    if status:
        raise typer.Exit(status)

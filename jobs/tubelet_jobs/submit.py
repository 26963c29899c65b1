"""``tubelet submit``: the same job on a running Ray cluster, through Ray's job API."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from tubelet_jobs.common import print_summary, say
from tubelet_jobs.environment import forwarded


def command(
    job: Annotated[list[str], typer.Argument(metavar="-- JOB", help="A job and its own options.")],
    *,
    address: Annotated[
        str,
        typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="The head: http://HEAD:8265."),
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job, or print its id and go.")
    ] = True,
    shared_fs: Annotated[
        list[str] | None,
        typer.Option("--shared-fs", metavar="DIR", help="A folder that all nodes have mounted here, too."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and stop.")] = False,
) -> None:
    """Run a job on a Ray cluster: the code travels along, logs come back, and so does the exit status.

    AWS_*, MLFLOW_* and TUBELET_* of this shell are set there as well. Ctrl-C stops the job. Where the cluster
    asks for a token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Places that other nodes cannot
    reach are refused; for folders that all nodes have mounted, say so with --shared-fs.

    Example:

        tubelet submit --address http://head:8265 -- train --recipe tiny --manifest s3://b/m --out s3://b/run1
    """
    from tubelet_jobs.remote.client import connect, follow, send
    from tubelet_jobs.remote.plan import plan_job

    env = forwarded(os.environ, same_machine=False)
    plan = plan_job(job, address=address, shared=tuple(shared_fs or ()), env=env)
    say(f"{address}: tubelet {shlex.join(plan.argv)}")
    say(f"set there: {', '.join(sorted(env)) or 'nothing'}")
    if dry_run:
        print_summary({"dry_run": True, "entrypoint": plan.entrypoint, "files": sorted(plan.files)})
        return
    client = connect(address)
    job_id = send(client, plan, env)
    say(f"submitted {job_id}")
    if not wait:
        print(job_id)
        print_summary({"submission_id": job_id, "address": address})
        return
    status = follow(client, job_id)
    if status:
        raise typer.Exit(status)

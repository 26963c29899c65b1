"""``tubelet submit``: the same job on a running Ray cluster, through Ray's job API."""

from __future__ import annotations

import os
import re
import shlex
from typing import Annotated

import typer
from pydantic import field_validator
from tubelet.config import Option, Settings

from tubelet_jobs.common import print_summary, say
from tubelet_jobs.environment import forwarded


class AddressOption(Settings):
    """Of what speaks to a cluster's job server."""

    address: Annotated[str, Option(envvar="RAY_API_SERVER_ADDRESS")]
    """The head's dashboard: http://HEAD:8265."""


class SubmitOptions(AddressOption):
    """Which job goes where."""

    job: Annotated[tuple[str, ...], Option(argument=True, metavar="-- JOB")]
    """A job and its own options."""
    name: Annotated[str | None, Option()] = None
    """What to call it in `tubelet jobs`."""
    wait: Annotated[bool, Option(flag="--wait/--no-wait")] = True
    """Follow the job, or print its id and go."""
    pip: Annotated[tuple[str, ...], Option(metavar="PACKAGE")] = ()
    """A package that the nodes install for this job (repeatable); what is large belongs into the image."""
    shared_fs: Annotated[tuple[str, ...], Option(metavar="DIR")] = ()
    """A folder that all nodes have mounted here, too."""
    dry_run: Annotated[bool, Option()] = False
    """Say what would be sent, and stop."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
            raise ValueError("up to 40 small letters, digits and dashes between them")
        return name

    @field_validator("pip")
    @classmethod
    def _installable(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        for package in packages:
            if package.startswith(("-", ".", "/", "file:")):
                raise ValueError(f"{package} is no package that nodes can fetch: name it, as NAME==VERSION")
            if re.search(r"://[^/]*@", package):
                raise ValueError("an address with a password would be kept in Ray's logs")
        return packages


def command(config: SubmitOptions) -> None:
    """Run a job on a Ray cluster: the code travels along, logs come back, and so does the exit status.

    AWS_*, MLFLOW_* and TUBELET_* of this shell are set there as well. Ctrl-C stops the job. Where the cluster
    asks for a token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Places that other nodes cannot
    reach are refused; for folders that all nodes have mounted, say so with --shared-fs. `tubelet jobs` lists
    what was submitted, and stops it.

    Example: tubelet submit --address http://head:8265 -- train --recipe tiny --manifest s3://b/m --out s3://b/run1
    """
    from tubelet_jobs.remote.client import auth_headers, check_address, connect, follow, send
    from tubelet_jobs.remote.listing import dashboard_link
    from tubelet_jobs.remote.plan import plan_job
    from tubelet_jobs.remote.reach import check_loopback

    address, env = check_address(config.address), forwarded(os.environ, same_machine=False)
    plan = plan_job(config.job, shared=config.shared_fs, env=env)
    say(f"{address}: tubelet {shlex.join(plan.argv)}")
    say(f"set there: {', '.join(sorted(env)) or 'nothing'}")
    if config.dry_run:
        if plan.loopback:
            say(f"refused unless all nodes are this machine: {', '.join(plan.loopback)}")
        print_summary({"dry_run": True, "entrypoint": plan.entrypoint, "files": sorted(plan.files)})
        return
    client = connect(address)
    check_loopback(plan.loopback, address, auth_headers())
    job_id = send(client, plan, env, name=config.name, pip=config.pip)
    say(f"submitted {job_id}: {dashboard_link(address, job_id)}")
    if not config.wait:
        print(job_id)
        summary = {"submission_id": job_id, "address": address, "dashboard": dashboard_link(address, job_id)}
        print_summary({**summary, "name": config.name})
        return
    status = follow(client, job_id)
    if status:
        raise typer.Exit(status)

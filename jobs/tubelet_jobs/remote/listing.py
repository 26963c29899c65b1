"""The jobs of a cluster as people see them: found by id or name, with links to their pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tubelet.config import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# As the tracker says it in the job's log.
_MLFLOW_RUN = re.compile(r"^MLflow run: (\S+)\s*$", re.MULTILINE)
_SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted to a cluster."""

    submission_id: str
    name: str | None
    job: str
    status: str
    started: str | None
    """When, in UTC."""
    seconds: float | None
    """How long it has run, or ran."""
    dashboard: str
    """Its page."""
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the JSON summary."""
        return asdict(self)

    def line(self) -> str:
        """One line of a list."""
        ran = "" if self.seconds is None else f"{self.seconds:.0f} s"
        return f"{self.submission_id:40} {self.status:10} {self.started or '':20} {ran:>9}  {self.job}"


def dashboard_link(address: str, submission_id: str) -> str:
    """The page of a job."""
    return f"{address}/#/jobs/{submission_id}"


def list_jobs(client: JobSubmissionClient, address: str) -> list[SubmittedJob]:
    """Every job that was submitted, the newest last."""
    found = [details for details in client.list_jobs() if details.submission_id]
    return [_seen(details, address) for details in sorted(found, key=lambda item: item.start_time or 0)]


def find_job(client: JobSubmissionClient, address: str, name: str) -> SubmittedJob:
    """The job with this submission id, or the newest of this name, or the only one whose id begins so.

    Raises:
        UserError: there is none, or there are several.
    """
    jobs = list_jobs(client, address)
    named = [job for job in jobs if job.submission_id == name] or [job for job in jobs if job.name == name]
    if named:
        return named[-1]
    begin = [job for job in jobs if job.submission_id.startswith(name) and len(name) >= _SHORTEST_PREFIX]
    if len(begin) == 1:
        return begin[0]
    if begin:
        raise UserError(f"{len(begin)} jobs begin with {name!r}: {_some(begin)}")
    raise UserError(f"no job {name!r} at {address}; there are: {_some(jobs) or 'none'}")


def mlflow_link(log: str) -> str | None:
    """The page of the run that a job logs to, out of what the job said."""
    found = _MLFLOW_RUN.search(log)
    return found[1] if found else None


def _some(jobs: Sequence[SubmittedJob]) -> str:
    return ", ".join(job.submission_id for job in jobs[:-6:-1]) + (", …" if len(jobs) > 5 else "")


def _seen(details: JobDetails, address: str) -> SubmittedJob:
    metadata = details.metadata or {}
    start_ms, end_ms = details.start_time, details.end_time
    start = datetime.fromtimestamp(start_ms / 1000, UTC) if start_ms else None
    end = datetime.fromtimestamp(end_ms / 1000, UTC) if end_ms else datetime.now(UTC)
    return SubmittedJob(
        submission_id=str(details.submission_id),
        name=metadata.get("tubelet.name"),
        job=metadata.get("tubelet.job") or details.entrypoint.partition(" ")[0],
        status=str(details.status.value),
        started=start.strftime("%Y-%m-%d %H:%M:%S") if start else None,
        seconds=round((end - start).total_seconds(), 1) if start else None,
        dashboard=dashboard_link(address, str(details.submission_id)),
        message=details.message,
    )

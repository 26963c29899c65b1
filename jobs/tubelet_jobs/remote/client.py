"""The way to a cluster's job server: the token, the code's upload, the log, the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tubelet.config import UserError
from tubelet.storage.retries import with_retries

from tubelet_jobs import given_environment
from tubelet_jobs.common import say
from tubelet_jobs.remote.plan import JobPlan

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# Ray gives a stopped job 3 seconds by default: too few to end its MLflow run and leave no half a checkpoint.
STOP_WAIT_S = 60
_POLL_S = 1.0
_ATTEMPTS = 4
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at ``address``, with the token where there is one.

    Raises:
        UserError: nobody answers, it is no job server, or it wants another token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they speak of each package and socket
    headers = auth_headers()
    try:
        with _without_addresses():  # Ray would prefer them to the address it is given
            return JobSubmissionClient(address, headers=headers)
    except AuthenticationError as error:
        reason = "refuses this token" if headers else "asks for a token"
        raise UserError(
            f"{address} {reason}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        ) from error
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"nobody answers at {address}: is the head up, and its dashboard reachable?"
        ) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{address} is no Ray job server: {_first_line(error)}") from error


def check_address(address: str) -> str:
    """The address of a job server as it is used.

    Raises:
        UserError: it is none, such as that of Ray's client.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme in ("http", "https") and parts.hostname:
        return address.rstrip("/")
    right = f"http://{parts.hostname or 'HEAD'}:8265"
    raise UserError(f"--address {address}: jobs go to the head's dashboard, --address {right}")


def auth_headers() -> dict[str, str]:
    """What a request needs beside the address: the token, where there is one."""
    token = auth_token(os.environ)
    return {"Authorization": f"Bearer {token}"} if token else {}


def auth_token(environ: Mapping[str, str]) -> str | None:
    """The cluster's token, from where Ray looks for it: the variable, the file it names, the file at home."""
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"].strip()
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text("utf-8").strip() or None
    except OSError as error:
        if named:
            raise UserError(f"RAY_AUTH_TOKEN_PATH: cannot read {named}: {error.strerror}") from error
        return None


def send(
    client: JobSubmissionClient,
    plan: JobPlan,
    env: Mapping[str, str],
    *,
    name: str | None = None,
    pip: Sequence[str] = (),
) -> str:
    """Upload the code (a few hundred kilobytes, once for the same content) and start the job.

    Args:
        client: of the job server.
        plan: what is sent.
        env: variables of the job and its workers. They travel as a file: Ray logs what a runtime environment
            says, and shows it with the job.
        name: by which people find the job again.
        pip: packages that the nodes install for this job.

    Returns:
        The submission id.
    """
    job_id = f"{name or f'tubelet-{plan.argv[0]}'}-{secrets.token_hex(6)}"
    with tempfile.TemporaryDirectory(prefix="tubelet-submit-") as folder:
        code, work = _pack(plan, Path(folder))
        modules = [*code, given_environment.write(env, Path(folder) / "environment")]
        request = {
            "entrypoint": plan.entrypoint,
            # Modules come before whatever the nodes have installed, on every node; the folder that the job
            # works in holds no code.
            "runtime_env": {
                "py_modules": [str(path) for path in modules],
                "working_dir": str(work),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                **({"pip": list(pip)} if pip else {}),
            },
            "metadata": {"tubelet.job": plan.argv[0], **({"tubelet.name": name} if name else {})},
        }
        _submit_once(client, job_id, request)
    return job_id


def _submit_once(client: JobSubmissionClient, job_id: str, request: Mapping[str, Any]) -> None:
    """Hand the job over. A head that is just starting drops requests: ask whether it has it, try again."""

    def submit() -> None:
        try:
            client.submit_job(submission_id=job_id, **request)
        except (OSError, RuntimeError):
            if not _has(client, job_id):
                raise

    try:
        with_retries(submit, retry_on=(OSError, RuntimeError), attempts=_ATTEMPTS, first_pause_s=_POLL_S)
    except (OSError, RuntimeError) as error:
        raise UserError(f"the cluster did not take the job: {_first_line(error)}") from error


def _has(client: JobSubmissionClient, job_id: str) -> bool:
    try:
        client.get_job_status(job_id)
    except (OSError, RuntimeError):
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def follow(client: JobSubmissionClient, job_id: str, *, stops: bool = True) -> int:
    """Stream the job's log to stderr and its summary to stdout until it ends.

    Args:
        client: of the job server.
        job_id: the submission id.
        stops: Ctrl-C stops the job, too.

    Returns:
        The job's exit status: 0 done, 1 failed, 2 wrong usage, 130 or 143 where a signal stopped it there.
    """
    printer = _LogPrinter()
    try:
        _stream(client, job_id, printer)
    except KeyboardInterrupt:  # SIGTERM, too
        if not stops:
            raise
        say(f"stopping {job_id}; again Ctrl-C leaves it to itself")
        stop(client, job_id)
        raise
    printer.close()
    info = client.get_job_info(job_id)
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:
        say(f"{job_id} {info.status.lower()}: {_reason(info.message)}")
    return info.driver_exit_code if info.driver_exit_code in (1, 2, 130, 143) else 1


def _reason(message: str | None) -> str:
    """Ray's first line, and, where pip could not install what was asked for, the last of pip's complaints."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()] or ["no reason given"]
    of_pip = [line for line in lines[1:] if line.startswith("ERROR:")]
    return " ".join([lines[0], *of_pip[-1:]])


class _LogPrinter:
    """Writes log text to stderr; the last line goes to stdout if it is a JSON object, the job's summary.

    A stream that was cut off begins anew: ``restart`` makes the printer skip what it has shown.
    """

    def __init__(self) -> None:
        self._shown = 0
        self._skip = 0
        self._line = ""
        self._held = ""

    def restart(self) -> None:
        self._skip = self._shown

    def feed(self, text: str) -> None:
        new = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        self._shown += len(new)
        *lines, self._line = (self._line + new).split("\n")
        for line in lines:
            self._show(line)

    def close(self) -> None:
        if self._line:
            self._show(self._line)
        if _is_summary(self._held):
            print(self._held, flush=True)
        elif self._held:
            say(self._held)

    def _show(self, line: str) -> None:
        if self._held:
            say(self._held)
        self._held = line


def _is_summary(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _stream(client: JobSubmissionClient, job_id: str, printer: _LogPrinter) -> None:
    """Follow the log until the job has ended; a connection that breaks is opened again."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            printer.feed(text)

    failures = 0
    while True:
        with contextlib.suppress(RuntimeError, OSError, asyncio.TimeoutError):
            asyncio.run(tail())
        try:
            if client.get_job_status(job_id) in ENDED:
                return
            failures = 0
        except (RuntimeError, OSError) as error:
            failures += 1
            if failures == 30:
                raise UserError(
                    f"the cluster does not answer any more; {job_id} may still run there"
                ) from error
        printer.restart()
        time.sleep(_POLL_S)


def stop(client: JobSubmissionClient, job_id: str) -> str:
    """Stop a job, and wait until it has ended, as it should within a minute.

    Returns:
        Its status then.
    """
    client.stop_job(job_id)
    end_s = time.monotonic() + STOP_WAIT_S + 15
    while (status := str(client.get_job_status(job_id).value)) not in ENDED and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    return status


@contextlib.contextmanager
def _without_addresses() -> Iterator[None]:
    held = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in held.items() if value is not None})


def _pack(plan: JobPlan, folder: Path) -> tuple[list[Path], Path]:
    """The two packages, nothing else of a checkout, and the folder to work in with the shipped files."""
    from tubelet import config

    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    code = []
    for source in (Path(config.__file__).parent, Path(__file__).parents[1]):
        code.append(Path(shutil.copytree(source, folder / "code" / source.name, ignore=skip)))
    work = folder / "work"
    work.mkdir()
    for target, source in plan.files.items():
        (work / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, work / target)
    return code, work

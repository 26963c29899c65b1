"""What every job shares: the common options, the Ray connection, the JSON summary, the error boundary."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tubelet.cluster import answers
from tubelet.config import Option, Settings, UserError
from tubelet.redaction import redacted, redacted_values
from tubelet.storage.private_folder import make_private

from tubelet_jobs import given_environment
from tubelet_jobs.environment import forwarded, make_paths_absolute
from tubelet_jobs.lean_node import lean_node
from tubelet_jobs.ray_noise import quiet_ray
from tubelet_jobs.stopping import children, handlers_kept, kill_children

if TYPE_CHECKING:
    from tubelet.inference.output import MadePage, MakePage

_log = logging.getLogger(__name__)

_ANSWER_S = 10.0  # a head that is being started, as by a script, is waited for


class RayOptions(Settings):
    """Of jobs that run on Ray."""

    ray_address: Annotated[str | None, Option(envvar="RAY_ADDRESS")] = None
    """Ray cluster to join (default: start one)."""


class DryRunOption(Settings):
    """Of jobs that can say what they would do."""

    dry_run: Annotated[bool, Option()] = False
    """Say what the job would do, and stop."""


def connect_ray(
    address: str | None, *, num_cpus: int | None = None, object_store_memory: int | None = None
) -> None:
    """Start a local Ray (``None`` or ``"local"``), or join ``address``. Does nothing when connected.

    Workers import what this process imports, but nothing from the folder it was started in: they work in an
    empty folder of ours, without which Ray would put this process's working folder and script folder on their
    path. Local ones inherit the environment; those of a cluster are given what they need of it to reach the
    store and the tracking server, so that a job behaves the same on one machine and on many.

    Raises:
        UserError: a local Ray did not come up, twice; nobody answers at ``address``, or it is a Ray client's.
    """
    import ray

    if ray.is_initialized():
        return
    local = address in (None, "local")
    if address is not None and not local:
        _check_address(address)
    make_paths_absolute(os.environ)
    with tempfile.TemporaryDirectory(prefix="tubelet-ray-") as folder:
        given = {
            "address": address or "local",
            "num_cpus": num_cpus if local else None,
            "object_store_memory": object_store_memory,
            "log_to_driver": False,
            "logging_level": "warning",
            "include_dashboard": False if local else None,
            # A local Ray's processes are children of this one: they inherit its variables, and its folder.
            "runtime_env": None if local else _runtime_env(Path(folder)),
        }
        with handlers_kept(), quiet_ray():
            if local:
                _start_local(given)
            else:
                ray.init(**given)


def connect_while_importing(module: str, address: str | None) -> None:
    """As :func:`connect_ray`, while a thread imports what the job needs: Ray waits for its processes then."""
    import ray  # noqa: F401 - here, not below: two threads must not import one package at once

    ours = threading.Thread(target=_import, args=(module,), name="import", daemon=True)
    ours.start()
    connect_ray(address)
    ours.join()


def _check_address(address: str) -> None:
    """Ray asks an address where nobody is for minutes, and says so in lines of its own."""
    if address.startswith("ray://"):
        raise UserError(
            f"{address} is the way of Ray's client, which cannot train or label: `tubelet submit --address "
            "http://HEAD:8265 -- JOB` from outside, --ray-address HEAD:6379 on one of the cluster's machines"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a kind of address that is Ray's to judge
    end_s = time.monotonic() + _ANSWER_S
    while not answers(host.strip("[]"), int(port)):
        if time.monotonic() > end_s:
            raise UserError(
                f"nobody answers at {address}: is the head up, and this the port of its `ray start`?"
            )
        time.sleep(0.5)


def _import(module: str) -> None:
    # What is wrong with it shows when it is imported once more, where it is used.
    with suppress(Exception):
        importlib.import_module(module)


def _start_local(given: Mapping[str, Any]) -> None:
    """Ray gives its node half a minute to come up, which a busy machine may miss: try once more."""
    import ray

    before = children()
    given = {**given, "_temp_dir": str(_ray_folder())}
    for last in (False, True):
        try:
            with lean_node(_empty_folder()):
                ray.init(**given)
        except (ValueError, TypeError):  # of what was asked for: no second try mends it
            raise
        except Exception as error:
            ray.shutdown()
            kill_children(spared=before)  # Ray forgets what it had started
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if "AF_UNIX path" in reason:
                raise UserError(
                    f"the paths of Ray's sockets below {_ray_folder()} are too long: set RAY_TMPDIR to a "
                    "shorter folder"
                ) from error
            if last:
                raise UserError(
                    f"Ray did not start on this machine, twice: {reason}\n"
                    f"run the same command when the machine is less busy; Ray's logs are in {_ray_folder()}"
                ) from error
            _log.warning("Ray did not start, trying once more: %s", reason)
        else:
            return


def _ray_folder() -> Path:
    """Where a local Ray keeps its files: logs and sockets are nobody else's to read.

    Ray opens the folders that it makes to everybody, again and again: the one around them is closed.
    """
    around = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / f"ray-{os.getuid()}"
    make_private(around)
    return around / "ray"


def _empty_folder() -> Path:
    """Where workers of a local Ray work."""
    empty = _ray_folder().parent / "empty"
    empty.mkdir(exist_ok=True)
    return empty


def _runtime_env(folder: Path) -> dict[str, Any]:
    """What workers of a cluster get, less what the submitted job of this process gives them already."""
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    empty = folder / "empty"
    empty.mkdir()
    wanted: dict[str, Any] = {} if "working_dir" in given else {"working_dir": str(empty)}
    wanted["worker_process_setup_hook"] = given_environment.HOOK
    if not given_environment.is_given():
        package = given_environment.write(forwarded(os.environ, same_machine=True), folder)
        wanted["py_modules"] = [str(package)]
    return wanted


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print the job's result as one JSON line, the last of stdout."""
    from tubelet.plain_json import plain

    print(json.dumps(redacted_values(plain(summary)), allow_nan=False), flush=True)


def say(message: str) -> None:
    """A line for the person at the terminal: to stderr, so that stdout stays the summary."""
    print(redacted(message), file=sys.stderr, flush=True)


def review_page(**settings: Any) -> MakePage:
    """What makes a page of the predictions at one URI, at another.

    Args:
        settings: of :class:`tubelet.review.page.ReviewConfig`; None: its default.
    """

    def make(predictions: str, out: str) -> MadePage:
        from tubelet.config import load_settings
        from tubelet.inference.output import MadePage
        from tubelet.review.page import ReviewConfig, review

        given = {name: value for name, value in settings.items() if value is not None}
        made = review(load_settings(ReviewConfig, {"predictions": predictions, "out": out, **given}))
        return MadePage(made.out, made.alone)

    return make

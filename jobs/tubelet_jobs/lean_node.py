"""A local Ray without the processes and the detours that a job on one machine has no use for.

Ray offers no settings for them, so its own parts are told in place; where a release knows them no longer, it
starts all that it starts by default, only later.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Of Ray's RayParams. The agent's port is fixed by default (52365): where another Ray of this machine has it,
# a node tries for 3.4 s before it goes on without. No nodes come or go, for which an autoscaler would look,
# and no workers' logs go to the driver, for which they would be followed.
_PARAMETERS = {"dashboard_agent_listen_port": 0, "no_monitor": True, "include_log_monitor": False}


@contextmanager
def lean_node(folder: Path) -> Iterator[None]:
    """A node that is started while it is open has no API server, autoscaler or log monitor.

    Its workers work in ``folder`` and have nothing of this process's working and script folders on their
    path. A runtime environment does the same, but starts each worker twice: 0.6 s of a processor more.
    """
    from ray import job_config
    from ray._private import node, parameter, services

    known = inspect.signature(parameter.RayParams).parameters
    given: dict[str, Any] = {name: value for name, value in _PARAMETERS.items() if name in known}
    with (
        patch.object(parameter, "RayParams", partial(parameter.RayParams, **given)),
        patch.object(node.Node, "start_api_server", _no_server),
        patch.object(services, "start_ray_process", partial(services.start_ray_process, cwd=str(folder))),
        patch.object(job_config.JobConfig, "_runtime_env_has_working_dir", lambda _: True),
    ):
        yield


def _no_server(node: Any, **_: Any) -> None:
    node._webui_url = None

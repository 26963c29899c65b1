"""What Ray says in every run and nobody can act on, kept off the terminal."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_TOKENS = "ray._private.authentication.authentication_token_setup"
_WORKERS = "worker processes have been started on node"
_LOST = re.compile(r"^The node with node id: .* and address: (?P<ip>\S+) .*has been marked dead", re.DOTALL)
_DIED = re.compile(r"^A worker died.*Worker IP address: (?P<ip>\S+) .*Worker PID: (?P<pid>\d+)", re.DOTALL)


@contextmanager
def quiet_ray() -> Iterator[None]:
    """While it is open, a process that connects to Ray does so without a word, and stays quiet after.

    Three things are left out: that tokens guard a local cluster; what Ray's C++ core in this process prints
    to the terminal, such as that actors of Ray Data may not come back once their arguments are lost; and that
    a node has started more workers than CPUs, as it does where ranks and Ray Data share them. That a worker
    died, or a node, is one line. Ray's other processes keep their logs as they are. ``TUBELET_DEBUG``, or a
    level that was set, leaves all as it is.
    """
    if os.environ.get("TUBELET_DEBUG") or _LEVEL in os.environ:
        yield
        return
    from ray._private import worker

    logging.getLogger(_TOKENS).setLevel(logging.ERROR)
    if not hasattr(worker.print_to_stdstream, "__wrapped__"):
        worker.print_to_stdstream = _in_short(worker.print_to_stdstream)
    # The level is read from the environment when the core starts; around all of init, the raylet and the
    # workers would inherit it.
    connect = worker.connect
    worker.connect = _quietly(connect)
    try:
        yield
    finally:
        worker.connect = connect


def _in_short(show: Callable[..., Any]) -> Callable[..., Any]:
    """What prints a node's messages: to stderr, in short, and less how many workers it has started."""

    @wraps(show)
    def filtered(data: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        lines = [_of_death(line) for line in data.get("lines", []) if _WORKERS not in line]
        return show(data | {"lines": lines, "is_err": True}, *args, **kwargs) if lines else None

    return filtered


def _of_death(line: str) -> str:
    if (lost := _LOST.search(line)) is not None:
        return f"the node at {lost['ip']} does not answer any more"
    found = _DIED.search(line)
    return line if found is None else f"a worker died: process {found['pid']} on {found['ip']}"


def _quietly(connect: Callable[..., Any]) -> Callable[..., Any]:
    def quietly(*args: Any, **kwargs: Any) -> Any:
        os.environ[_LEVEL] = "fatal"
        try:
            with _without_lines_on(_LEVEL):
                return connect(*args, **kwargs)
        finally:
            del os.environ[_LEVEL]

    return quietly


@contextmanager
def _without_lines_on(word: str) -> Iterator[None]:
    """Hold back what is written to file descriptor 2, and print it at the end but for lines with ``word``."""
    try:
        terminal = os.dup(2)
    except OSError:  # nothing is open there
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            os.write(2, b"".join(line for line in held if word.encode() not in line))

"""What Ray says in every run and nobody can act on, kept off the terminal."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_TOKENS = "ray._private.authentication.authentication_token_setup"


@contextmanager
def quiet_ray() -> Iterator[None]:
    """While it is open, a process that connects to Ray does so without a word, and stays quiet after.

    Two things are left out: that tokens guard a local cluster; and what Ray's C++ core in this process prints
    to the terminal, such as that actors of Ray Data may not come back once their arguments are lost. Ray's
    other processes keep their logs as they are. ``TUBELET_DEBUG``, or a level that was set, leaves all as it
    is.
    """
    if os.environ.get("TUBELET_DEBUG") or _LEVEL in os.environ:
        yield
        return
    from ray._private import worker

    logging.getLogger(_TOKENS).setLevel(logging.ERROR)
    # The level is read from the environment when the core starts; around all of init, the raylet and the
    # workers would inherit it.
    connect = worker.connect
    worker.connect = _quietly(connect)
    try:
        yield
    finally:
        worker.connect = connect


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

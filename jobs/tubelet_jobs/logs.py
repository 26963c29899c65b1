"""How the library's log looks on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tubelet.redaction import redacted


class _StderrHandler(logging.Handler):
    """Writes to what stderr is at that moment: a live progress bar and tests put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # of a message that does not fit its arguments, as logging has it
            self.handleError(record)


class _Format(logging.Formatter):
    """Without secrets. Warnings as people read them; below them (``TUBELET_DEBUG=1``) with who says it."""

    def format(self, record: logging.LogRecord) -> str:
        text = redacted(super().format(record))  # its traceback, too
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return text if record.levelno >= logging.INFO else f"{record.name}: {text}"


@contextmanager
def log_to_stderr(*, debug: bool = False) -> Iterator[None]:
    """Show what the library logs: from INFO on, with ``debug`` all of it."""
    log, handler = logging.getLogger("tubelet"), _StderrHandler()
    handler.setFormatter(_Format())
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False  # to the root, where a library may have put a handler of its own
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate

"""SIGINT and SIGTERM, and the end of the process: one way for every job.

The first signal raises :class:`Interrupted` in the main thread, so that what is open is closed as after any
error: locks, temporary folders, the MLflow run. A second one is for those who do not want to wait for that.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import psutil

NUMBERS = (signal.SIGINT, signal.SIGTERM)
# Given to a job to close what is open, and to the process for its own end.
_CLOSE_S = 90.0  # submit waits 75 s for its job to stop
_END_S = 20.0


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


class StoppedError(Exception):
    """A job heard a signal itself and stopped well; the message says what is kept and how to go on."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = signal.Signals(number)


class Signals:
    """While it is open, signals raise :class:`Interrupted`. ``number``: the one that came first."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._closed = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in NUMBERS}
            self._hook, sys.unraisablehook = sys.unraisablehook, self._signal_again
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def close(self) -> None:
        """The job has ended: what comes now is no reason to raise."""
        self._closed.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._closed.is_set():
            return
        if self.number is None:
            self.number = signal.Signals(number)
            threading.Thread(target=self._end_late, name="stop", daemon=True).start()
        raise Interrupted(number)

    def _signal_again(self, lost: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in a destructor or a callback, where the signal may have come."""
        if isinstance(lost.exc_value, Interrupted):
            threading.Timer(0.1, signal.pthread_kill, [_main_thread_id(), lost.exc_value.number]).start()
        else:
            self._hook(lost)

    def _end_late(self) -> None:
        """Closing what is open waits for a tracking server or a store; not for ever."""
        if not self._closed.wait(_CLOSE_S) and self.number is not None:
            print(f"error: stopped by {self.number.name}, with no more waiting", file=sys.stderr)
            end(128 + self.number)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Who hears signals still does afterwards, whatever is started inside.

    Ray exits on a SIGTERM, and its core tells of it with a trace of native code.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in NUMBERS} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _main_thread_id() -> int:
    return threading.main_thread().ident or 0


def end(status: int) -> NoReturn:
    """End this process and what it started, now.

    Not by way of the interpreter's own end: native threads of Arrow, Torch and Ray that still run while it
    takes itself down abort the process (SIGABRT in place of the status).
    """
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:  # the job is over: a signal would only leave behind what is put away here
            signal.signal(number, signal.SIG_IGN)
    if not status:
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter: threads end their work
    late = threading.Timer(_END_S, _exit, [status])
    late.daemon = True
    late.start()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    # Whatever Ray has still to say: the summary stays the last line of stdout.
    sys.stdout = sys.stderr
    with contextlib.suppress(BaseException):
        _shut_down_ray()
    with contextlib.suppress(BaseException):
        _leave_arrow_alone()
        atexit._run_exitfuncs()
    _exit(status)


def _leave_arrow_alone() -> None:
    """Arrow takes its S3 client and that one's threads down before the interpreter goes; ours does not go."""
    arrow = sys.modules.get("pyarrow._s3fs")
    if arrow is not None:
        atexit.unregister(arrow.ensure_s3_finalized)


def _exit(status: int) -> NoReturn:
    with contextlib.suppress(BaseException):
        kill_children()
    with contextlib.suppress(BaseException):
        sys.stderr.flush()
    os._exit(status)


def _shut_down_ray() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def kill_children(spared: Collection[psutil.Process] = ()) -> None:
    """Kill what this process has started, but for ``spared``."""
    import psutil

    for child in children():
        if child not in spared:
            with contextlib.suppress(psutil.Error):
                child.kill()


def children() -> list[psutil.Process]:
    """What still runs of what this process started; what has a session of its own is meant to outlive it."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(child.pid) == os.getsid(0):
                found.append(child)
    return found

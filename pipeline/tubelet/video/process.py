"""The decoder process as its parent starts and ends it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import IO

from tubelet.video import wire
from tubelet.video.containment import hide_memory
from tubelet.video.errors import DecoderStartError
from tubelet.video.limits import Limits
from tubelet.video.segments import Segments
from tubelet.video.wire import MalformedError

_log = logging.getLogger(__name__)

_START_S = 60.0  # a loaded machine starts an interpreter slowly; only a broken one takes this long
_START_ATTEMPTS = 2  # where it was killed, or the time ran out: that may be the machine's state of a moment
_MOST_SAID_BYTES = 8192

# The child imports what this process imports: its path is this one's, in the same order. Until it is set, -P
# keeps the working folder off, where a json.py may lie.
_ENTRY = (
    "import json, sys; path, *given = map(json.loads, sys.argv[1:]); sys.path[:] = path; "
    "from tubelet.video.child import main; main(*given)"
)

# Of this process's environment: where libraries and Python itself lie, and how text is read.
_KEPT_ENV = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "LANG", "LC_ALL", "LC_CTYPE")
# What makes a process decode fast; a measure of bare decode wants it as well.
CHILD_ENV = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Arenas of threads would count against the memory limit.
    "MALLOC_ARENA_MAX": "1",
    # Decoders free all their pictures after each video: giving them back to the system costs clearing them
    # again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_spawners: dict[int, ThreadPoolExecutor] = {}
_spawners_lock = threading.Lock()
_said_lacking: set[str] = set()


def _spawner() -> ThreadPoolExecutor:
    """A thread that lives as long as this process, to start children from.

    The kernel takes the end of the thread that started a child for the end of its parent, so children are
    not started by threads that may end earlier.
    """
    with _spawners_lock:
        if os.getpid() not in _spawners:
            _spawners.clear()
            _spawners[os.getpid()] = ThreadPoolExecutor(1, "sandbox-spawner")
        return _spawners[os.getpid()]


class Child:
    """One child process and the socket to it.

    Attributes:
        process: it is the first of a process group of its own.
        link: the socket.
        served: requests that it was given.
        segments: the shared memory of its replies.
        modules: imported besides this package's.
    """

    def __init__(self, limits: Limits, modules: frozenset[str]) -> None:
        hide_memory()
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = _spawner().submit(_start, theirs.fileno(), limits, modules).result()
        fcntl.fcntl(
            self.stderr, fcntl.F_SETFL, os.O_NONBLOCK
        )  # what there is of it is looked at, never waited for
        self.link = ours
        self.served = 0
        self.modules = modules
        self.segments = Segments(limits.memory_bytes)
        self.last_use = weakref.finalize(self, _end, self.process, ours)

    @classmethod
    def started(cls, limits: Limits, modules: frozenset[str] = frozenset()) -> Child:
        """A child that is ready for requests.

        Raises:
            DecoderStartError: it does not start here, whatever the file; or a layer of containment is
                lacking although ``limits`` ask for all.
        """
        for attempt in range(_START_ATTEMPTS):
            try:
                child = cls(limits, modules)
            except OSError as error:
                raise DecoderStartError(f"the decoder process cannot be started: {error}") from error
            try:
                _, body, _ = wire.receive(child.link, time.monotonic() + _START_S, wire.FROM_CHILD)
            except (TimeoutError, EOFError, OSError, MalformedError) as error:
                status, said = child.failed_start()
                if status in (None, -signal.SIGKILL) and attempt + 1 < _START_ATTEMPTS:
                    continue
                how = f"not ready after {_START_S:g} s" if status is None else f"status {status}"
                raise DecoderStartError(f"the decoder process does not start ({how}): {said}") from error
            try:
                _judge(json.loads(body), limits)
            except DecoderStartError:
                child.end()
                raise
            return child
        raise AssertionError

    @property
    def stderr(self) -> IO[bytes]:
        """What the child writes to stderr."""
        assert self.process.stderr is not None
        return self.process.stderr

    def failed_start(self) -> tuple[int | None, str]:
        """End it; its exit status (None: it was still running) and the last line that it wrote."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        status = self.process.poll()
        _kill(self.process)
        lines = (self.stderr.read() or b"").decode(errors="replace").split("\n")
        self.last_use()
        return status, next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def log_what_it_says(self) -> None:
        """Pass on what the child has written to stderr: a bounded part, without control characters."""
        said = b""
        with suppress(OSError, ValueError):
            said = os.read(self.stderr.fileno(), _MOST_SAID_BYTES)
            while len(os.read(self.stderr.fileno(), _MOST_SAID_BYTES)) == _MOST_SAID_BYTES:
                pass
        for line in said.decode("utf-8", "replace").splitlines():
            _log.warning("the decoder process said: %s", _CONTROL.sub("\N{REPLACEMENT CHARACTER}", line))

    def resident_bytes(self) -> int:
        """Bytes of memory that it has in use, 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.process.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        except (OSError, IndexError):
            return 0

    def file_bytes_read(self) -> int:
        """Bytes that it has read of files so far, 0 where the system does not tell. Sockets do not count."""
        try:
            with open(f"/proc/{self.process.pid}/io", "rb") as file:
                return int(file.readline().removeprefix(b"rchar:"))
        except (OSError, ValueError):
            return 0

    def end(self) -> int | None:
        """Kill it, wait for it; returns its exit status, negative for a signal that was not ours."""
        status = self.process.poll()
        self.log_what_it_says()
        self.last_use()
        return status


def _judge(lacking: list[str], limits: Limits) -> None:
    """Say once what the kernel lacks."""
    if lacking and limits.sandbox == "required":
        raise DecoderStartError(
            f"this machine cannot contain the decoder in full ({'; '.join(lacking)}): --sandbox auto does"
            " without what is lacking"
        )
    new = [text for text in lacking if text not in _said_lacking]
    _said_lacking.update(new)
    for text in new:
        _log.warning("the decoder runs without a layer of its containment that this kernel lacks: %s", text)


def _start(link_file: int, limits: Limits, modules: frozenset[str]) -> subprocess.Popen[bytes]:
    path = [os.path.abspath(p) for p in sys.path]
    given = [path, link_file, os.getpid(), asdict(limits), sorted(modules)]
    kept = {name: os.environ[name] for name in _KEPT_ENV if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _ENTRY, *map(json.dumps, given)],
        pass_fds=(link_file,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env={**kept, **CHILD_ENV},
        process_group=0,
    )


def _end(process: subprocess.Popen[bytes], link: socket.socket) -> None:
    link.close()
    _kill(process)
    if process.stderr is not None:
        process.stderr.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the child, and whatever it may have started; its number is its own until it is waited for."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()

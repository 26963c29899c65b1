"""Decoding in a child process that no file can take down with it.

The child is a fresh interpreter, never a fork of a process with threads. It has a deadline (it is killed),
a memory limit (its allocations fail), and is replaced from time to time and after every death. Clips come
back through shared memory without a copy. On Linux the kernel kills it when its parent dies.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tubelet.video import wire
from tubelet.video.child import Reply, Request
from tubelet.video.decode import Clip, Decoded
from tubelet.video.errors import DecodeError, DecoderStartError
from tubelet.video.info import VideoInfo
from tubelet.video.limits import Limits
from tubelet.video.source import Source
from tubelet.video.transcode import Copied, CopySpec
from tubelet.video.views import View

_START_S = 60.0  # a loaded machine starts an interpreter slowly; only a broken one takes this long
_FAT_BYTES = 1 << 30  # a child that keeps this much after a request is replaced
# Shared memory kept for use again: more replies than this are seldom looked at at a time.
_KEPT_SEGMENTS = 4
_KEPT_SEGMENT_BYTES = 64 << 20

# The child imports what this process imports: its path is this one's, in the same order. Until it is set, -P
# keeps the working folder off, where a json.py may lie.
_ENTRY = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[4]); "
    "from tubelet.video.child import main; main(*map(int, sys.argv[1:4]))"
)
_START_ATTEMPTS = 2  # where it was killed, or the time ran out: that may be the machine's state of a moment

_CHILD_ENV = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Arenas of threads would count against the memory limit.
    "MALLOC_ARENA_MAX": "1",
    # Decoders free all their pictures after each video: giving them back to the system costs clearing them
    # again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}

_spawners: dict[int, ThreadPoolExecutor] = {}
_spawners_lock = threading.Lock()


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


class _Lease(npt.NDArray[np.uint8] if TYPE_CHECKING else np.ndarray):  # type: ignore[misc]
    """The memory of a reply; when the last clip in it is gone, the child may use it again."""


class _Segments:
    """Shared memory of one child: what is mapped here, and what of it nobody looks at any more."""

    def __init__(self) -> None:
        self._mapped: dict[int, mmap.mmap] = {}
        self._free: list[int] = []  # appended to when arrays are freed, in any thread

    @property
    def known(self) -> tuple[int, ...]:
        """Segments that are kept for use."""
        return tuple(self._mapped)

    def pop_free(self) -> int | None:
        """A segment to write to."""
        return self._free.pop() if self._free else None

    def lease(self, segment: int, files: list[int]) -> npt.NDArray[np.uint8]:
        """The memory of a reply, as an array that gives it back when it goes."""
        for file in files:
            memory = mmap.mmap(file, 0)
            os.close(file)
        if not files:
            memory = self._mapped[segment]
        lease = np.frombuffer(memory, np.uint8).view(_Lease)
        if segment in self._mapped or (
            len(self._mapped) < _KEPT_SEGMENTS and len(memory) <= _KEPT_SEGMENT_BYTES
        ):
            self._mapped[segment] = memory
            weakref.finalize(lease, self._free.append, segment).atexit = False
        return lease

    def forget(self, segment: int) -> None:
        """A free segment that turned out too small."""
        self._mapped.pop(segment, None)


class _Child:
    """One child process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = _spawner().submit(_start, theirs.fileno()).result()
        self.link = ours
        self.served = 0
        self.segments = _Segments()
        self.last_use = weakref.finalize(self, _end, self.process, ours)

    @classmethod
    def started(cls) -> _Child:
        """A child that is ready for requests.

        Raises:
            DecoderStartError: it does not start here, whatever the file.
        """
        for attempt in range(_START_ATTEMPTS):
            try:
                child = cls()
            except OSError as error:
                raise DecoderStartError(f"the decoder process cannot be started: {error}") from error
            try:
                wire.receive(child.link, time.monotonic() + _START_S)
            except (TimeoutError, EOFError, OSError) as error:
                status, said = child.failed_start()
                if status in (None, -signal.SIGKILL) and attempt + 1 < _START_ATTEMPTS:
                    continue
                how = f"not ready after {_START_S:g} s" if status is None else f"status {status}"
                raise DecoderStartError(f"the decoder process does not start ({how}): {said}") from error
            child.stderr.close()
            return child
        raise AssertionError

    @property
    def stderr(self) -> IO[bytes]:
        """What the child writes to stderr until it has started."""
        assert self.process.stderr is not None
        return self.process.stderr

    def failed_start(self) -> tuple[int | None, str]:
        """End it; its exit status (None: it was still running) and the last line that it wrote."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        status = self.end()
        with self.stderr as file:
            lines = file.read().decode(errors="replace").split("\n")
        return status, next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def end(self) -> int | None:
        """Kill it, wait for it; returns its exit status, negative for a signal that was not ours."""
        status = self.process.poll()
        self.last_use()
        return status


def _start(link_file: int) -> subprocess.Popen[bytes]:
    paths = json.dumps([os.path.abspath(p) for p in sys.path])
    # The child's stderr is a pipe until it has started, then this process's.
    stderr = _open_stderr()
    try:
        numbers = [str(link_file), str(os.getpid()), str(stderr)]
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _ENTRY, *numbers, paths],
            pass_fds=(link_file, stderr),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **_CHILD_ENV},
        )
    finally:
        os.close(stderr)


def _open_stderr() -> int:
    try:
        return os.dup(2)
    except OSError:  # this process has none
        return os.open(os.devnull, os.O_WRONLY)


def _end(process: subprocess.Popen[bytes], link: socket.socket) -> None:
    link.close()
    process.kill()
    process.wait()


class Sandbox:
    """A decoder process, started at the first request and replaced when it dies or has served its time.

    One request runs at a time (others wait their turn). Every failure is a :class:`DecodeError`: among
    others ``timeout`` (the child was killed at the deadline), ``crash`` (it died), ``out_of_memory``,
    ``too_large``. Only a child that cannot start at all is a :class:`DecoderStartError`, which is no file's.

    Attributes:
        bytes_read: of all sources so far, but of those whose child died.
    """

    def __init__(self, limits: Limits | None = None, recycle_after: int = 2000) -> None:
        if recycle_after < 1:
            raise ValueError(f"recycle_after must be at least 1, given {recycle_after}")
        self.limits = limits or Limits()
        self.bytes_read = 0
        self._recycle_after = recycle_after
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child. The next request starts another."""
        with self._lock:
            self._drop()

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return None if self._child is None else self._child.process.pid

    def probe(self, source: Source) -> VideoInfo:
        """Like :func:`tubelet.video.probe`."""
        with self._lock:
            reply, _, _ = self._ask(Request(_portable(source, self.limits), None, None, self.limits))
        assert reply.info is not None
        return reply.info

    def decode_views(
        self, source: Source, views: Sequence[View], *, window_s: tuple[float, float] | None = None
    ) -> Decoded:
        """Like :func:`tubelet.video.decode_views`. A callable ``source`` is opened in the child."""
        with self._lock:
            reply, memory, _ = self._ask(
                Request(_portable(source, self.limits), tuple(views), window_s, self.limits)
            )
        assert reply.info is not None
        assert memory is not None
        clips, offset = [], 0
        for shape, times_s in zip(reply.shapes, reply.times_s, strict=True):
            size = int(np.prod(shape))
            frames = memory[offset : offset + size].view(np.ndarray).reshape(shape)
            clips.append(Clip(frames, times_s))
            offset += size
        return Decoded(clips, reply.info, reply.error)

    def transcode(
        self, source: Source, spec: CopySpec, *, window_s: tuple[float, float] | None = None
    ) -> Copied:
        """Like :func:`tubelet.video.transcode.transcode`. A callable ``source`` is opened in the child."""
        with self._lock:
            reply, _, files = self._ask(
                Request(_portable(source, self.limits), None, window_s, self.limits, copy=spec)
            )
        assert reply.info is not None
        return Copied(os.fdopen(files[0], "rb"), reply.info, reply.error)

    def _ask(self, request: Request) -> tuple[Reply, npt.NDArray[np.uint8] | None, list[int]]:
        packed = _packed(request)  # refuses what cannot travel before a child is started for it
        end_s = time.monotonic() + self.limits.deadline_s
        child = self._ready_child()
        if child.served == 0:
            end_s = time.monotonic() + self.limits.deadline_s  # starting is not the file's fault
        child.served += 1
        free = None if request.views is None else child.segments.pop_free()
        if child.segments.known:
            packed = _packed(replace(request, segments=child.segments.known, free=free))
        try:
            child.link.settimeout(self.limits.deadline_s)
            wire.send(child.link, packed)
            reply, files = wire.receive(child.link, end_s)
        except TimeoutError:
            self._drop()
            raise DecodeError(
                "timeout", f"not done after {self.limits.deadline_s:g} s (--deadline)"
            ) from None
        except (EOFError, OSError):
            raise DecodeError("crash", f"the decoder process {self._cause_of_death()}") from None
        self.bytes_read += reply.bytes_read
        if free is not None and reply.segment != free:
            child.segments.forget(free)
        memory = None
        if reply.segment is not None and reply.failure is None:
            memory = child.segments.lease(reply.segment, files)
        elif free is not None and reply.segment == free:
            child.segments.forget(free)
        if reply.resident_bytes > _FAT_BYTES:
            self._drop()
        if reply.failure is not None:
            raise reply.failure
        return reply, memory, files

    def _ready_child(self) -> _Child:
        child = self._child
        if child is not None and (child.served >= self._recycle_after or child.process.poll() is not None):
            self._drop()
        if self._child is None:
            self._child = _Child.started()
        return self._child

    def _cause_of_death(self) -> str:
        child, self._child = self._child, None
        assert child is not None
        try:
            child.process.wait(1.0)
        except subprocess.TimeoutExpired:
            child.end()
            return "closed its connection"
        status = child.process.returncode
        child.end()
        return (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def _packed(request: Request) -> bytes:
    try:
        return wire.pack(request)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(f"the source cannot travel to the decoder process: {error}") from error


def _portable(source: Source, limits: Limits) -> Source:
    """What means the same in another process: a full path, bytes, or a callable."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.abspath(os.fspath(source))
    if isinstance(source, bytes) or callable(source):
        return source
    data: bytes = source.read()
    if len(data) > limits.max_object_bytes:
        raise DecodeError("too_large", f"over {limits.max_object_bytes} bytes")
    return data

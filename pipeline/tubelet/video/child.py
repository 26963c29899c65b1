"""The decoder process: answers one request at a time until its parent is gone.

Started by :mod:`tubelet.video.sandbox` with a socket; imports only this package, and what a source needs
to be opened.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import socket
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tubelet.video import wire
from tubelet.video.decode import Decoded, decode_views, probe
from tubelet.video.errors import DecodeError
from tubelet.video.info import VideoInfo
from tubelet.video.limits import Limits
from tubelet.video.picture import Pixels
from tubelet.video.source import METER, Source
from tubelet.video.transcode import CopySpec, transcode
from tubelet.video.views import View

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Request:
    """Decode views of a source, or make a copy of it (``copy``), or probe it (neither)."""

    source: Source
    views: tuple[View, ...] | None
    window_s: tuple[float, float] | None
    limits: Limits
    segments: tuple[int, ...] = ()
    """Segments of shared memory that the parent still maps; all others are given up."""
    free: int | None = None
    """One of them that may be written to."""
    copy: CopySpec | None = None


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Frames lie in the shared memory sent beside it, one clip after another; ``shapes`` has each clip's. A copy
    is the file sent beside it.
    """

    failure: Exception | None = None
    info: VideoInfo | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    times_s: tuple[Any, ...] = ()
    error: DecodeError | None = None
    resident_bytes: int = 0
    segment: int | None = None
    bytes_read: int = 0
    """Of the source."""


class SharedMemory:
    """Memory for the clips of replies: anonymous, so that nothing is left behind whoever dies.

    Segments that the parent has done with are used again: the system clears new pages one by one, which
    takes as long as scaling the frames that go into them.
    """

    def __init__(self) -> None:
        self._kept: dict[int, mmap.mmap] = {}
        self._count = 0
        self._free: int | None = None
        self.segment: int | None = None
        """The segment of the current reply."""
        self.file: int | None = None
        """Its file descriptor, where the parent does not have it yet; or that of a copy."""

    def begin(self, free: int | None) -> None:
        """A new request, which may use the segment ``free``."""
        self._free = free
        self._drop_file()
        self.segment = None

    def allocate(self, size_bytes: int) -> Pixels:
        """uint8 (size_bytes,). A second call (decoding began anew) replaces the first."""
        if self._free is not None and len(self._kept[self._free]) >= size_bytes:
            self.segment = self._free
            return np.frombuffer(self._kept[self._free], np.uint8, size_bytes)
        self._drop_file()
        self.file = new_memory_file(size_bytes)
        self._count += 1
        self.segment = self._count
        self._kept[self._count] = mmap.mmap(self.file, size_bytes)
        return np.frombuffer(self._kept[self._count], np.uint8)

    def keep(self, segments: tuple[int, ...]) -> None:
        """Let go of all segments but these; the parent has its own hold on what it uses."""
        self._kept = {number: memory for number, memory in self._kept.items() if number in segments}

    def _drop_file(self) -> None:
        if self.file is not None:
            os.close(self.file)
        self.file = None


def new_memory_file(size_bytes: int) -> int:
    """A file descriptor of memory without a name."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("tubelet-clips")
    else:
        import tempfile

        file, path = tempfile.mkstemp()
        os.unlink(path)
    os.ftruncate(file, size_bytes)
    return file


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies.

    A child that hangs in FFmpeg would outlive it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def address_space() -> int:
    """Bytes of address space in use, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def resident_bytes() -> int:
    """Bytes of memory in use, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def limit_memory(size_bytes: int) -> None:
    """Refuse allocations that would take the address space above ``size_bytes``."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        size_bytes = min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, hard))


def answer(request: Request, memory: SharedMemory) -> Reply:
    """Do what is asked; whatever goes wrong is part of the reply."""
    try:
        if request.copy is not None:
            return _copied(request, request.copy, memory)
        if request.views is None:
            return Reply(info=probe(request.source, limits=request.limits))
        decoded = decode_views(
            request.source,
            request.views,
            window_s=request.window_s,
            limits=request.limits,
            allocate=memory.allocate,
        )
        return _reply(decoded)
    except MemoryError:
        return Reply(
            failure=DecodeError("out_of_memory", f"over {request.limits.memory_bytes} bytes (--memory)")
        )
    except Exception as error:
        return Reply(failure=error)


def _copied(request: Request, spec: CopySpec, memory: SharedMemory) -> Reply:
    copied = transcode(request.source, spec, window_s=request.window_s, limits=request.limits)
    with copied.file as file:
        memory.file = os.dup(file.fileno())
    return Reply(info=copied.info, error=copied.error)


def _reply(decoded: Decoded) -> Reply:
    return Reply(
        info=decoded.info,
        shapes=tuple(clip.frames.shape for clip in decoded.clips),
        times_s=tuple(clip.times_s for clip in decoded.clips),
        error=decoded.error,
    )


def _pack(reply: Reply) -> bytes:
    try:
        return wire.pack(reply)
    except Exception:  # an exception of somebody's source that does not travel
        failure = reply.failure
        return wire.pack(Reply(failure=DecodeError("io_error", f"{type(failure).__name__}: {failure}")))


def main(link_file: int, parent: int, stderr: int) -> None:
    """Serve requests that come over the socket ``link_file`` until it is closed.

    Args:
        link_file: file descriptor of the socket.
        parent: process id of the parent.
        stderr: file descriptor of the stderr that this process has from now on.
    """
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    link = socket.socket(fileno=link_file)
    base = address_space()
    os.dup2(stderr, 2)  # until here, what was written there tells the parent why this process did not start
    os.close(stderr)
    wire.send(link, wire.pack(os.getpid()))
    memory = SharedMemory()
    while True:
        try:
            message, _ = wire.receive(link)
        except (EOFError, OSError):
            return
        except Exception as error:  # what the source needs cannot be imported here
            text = f"the source cannot be opened in the decoder process: {type(error).__name__}: {error}"
            wire.send(link, wire.pack(Reply(failure=ValueError(text))))
            continue
        if base:
            limit_memory(base + message.limits.memory_bytes)
        memory.keep(message.segments)
        memory.begin(message.free)
        before = METER.bytes_read
        reply = replace(
            answer(message, memory),
            resident_bytes=resident_bytes(),
            segment=memory.segment,
            bytes_read=METER.bytes_read - before,
        )
        files = () if memory.file is None or reply.failure is not None else (memory.file,)
        wire.send(link, _pack(reply), files)
        del message, reply

"""The decoder process: answers one request at a time until its parent is gone.

Started by :mod:`pipeline.video.sandbox` with a socket; imports only this package, and what a source needs
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
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.video import wire
from pipeline.video.decode import Decoded, decode_views, probe
from pipeline.video.errors import DecodeError
from pipeline.video.info import VideoInfo
from pipeline.video.limits import Limits
from pipeline.video.picture import Pixels
from pipeline.video.source import Source
from pipeline.video.views import View

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Request:
    """Probe a source (no ``views``), or decode views of it."""

    source: Source
    views: tuple[View, ...] | None
    window_s: tuple[float, float] | None
    limits: Limits


@dataclass(frozen=True)
class Reply:
    """What came of a request. Frames lie in the shared memory sent beside it: each clip's shape, one
    after another.
    """

    failure: Exception | None = None
    info: VideoInfo | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    times_s: tuple[Any, ...] = ()
    error: DecodeError | None = None
    resident_bytes: int = 0


class SharedMemory:
    """Memory for the clips of one reply: anonymous, so that nothing is left behind whoever dies."""

    def __init__(self) -> None:
        self.file: int | None = None
        self._map: mmap.mmap | None = None

    def allocate(self, size_bytes: int) -> Pixels:
        """uint8 (size_bytes,). A second call (decoding began anew) replaces the first."""
        self.close()
        self.file = new_memory_file(size_bytes)
        self._map = mmap.mmap(self.file, size_bytes)
        return np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        """Let go of it; the parent has its own hold."""
        if self.file is not None:
            os.close(self.file)
        self.file = self._map = None


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
    """Have the kernel kill this process when its parent dies: a child that hangs in FFmpeg would outlive
    it.
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
            failure=DecodeError("out_of_memory", f"over {request.limits.memory_bytes} bytes of memory")
        )
    except Exception as error:
        return Reply(failure=error)


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


def main(link_file: int, parent: int) -> None:
    """Serve requests that come over the socket ``link_file`` until it is closed."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    link = socket.socket(fileno=link_file)
    base = address_space()
    wire.send(link, wire.pack(os.getpid()))
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
        memory = SharedMemory()
        reply = answer(message, memory)
        object.__setattr__(reply, "resident_bytes", resident_bytes())
        wire.send(link, _pack(reply), () if memory.file is None or reply.failure else (memory.file,))
        memory.close()
        del message, reply, memory

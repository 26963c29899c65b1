"""The decoder process: answers one request at a time until its parent is gone.

Started by :mod:`tubelet.video.process` with a socket; imports only this package. From the first request on it
may be in the hands of whoever made the file: see :mod:`tubelet.video.containment` for what is left to it.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import io
import json
import mmap
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from tubelet.ranges import RangedReader
from tubelet.video import wire
from tubelet.video.containment import LINK, contain, lower_limit
from tubelet.video.decode import Decoded, decode_views, probe
from tubelet.video.errors import DecodeError
from tubelet.video.framing import ShortSide
from tubelet.video.limits import Limits
from tubelet.video.picture import Pixels
from tubelet.video.reply import Reply
from tubelet.video.sampling import Uniform
from tubelet.video.source import Source
from tubelet.video.transcode import CopySpec, transcode
from tubelet.video.views import View
from tubelet.video.wire import RANGE, Kind

_PR_SET_PDEATHSIG = 1
# What NumPy and PyAV import when they first meet a median, or a stream of another kind.
_LOADED_LATE = (
    "numpy.ma",
    "av.audio.codeccontext",
    "av.audio.stream",
    "av.subtitles.codeccontext",
    "av.subtitles.stream",
)
# What makes shared memory fit for a reader who does not trust its maker: its size is fixed (linux/fcntl.h).
_F_ADD_SEALS, _FIXED_SIZE = 1033, 0x0001 | 0x0002 | 0x0004


@dataclass(frozen=True)
class Request:
    """Decode views of a source, or make a copy of it (``copy``), or probe it (neither)."""

    source: Literal["file", "data", "ranges"]
    """It comes as a descriptor with the request, in the next message, or is asked for range by range."""
    size_bytes: int
    views: tuple[View, ...] | None
    window_s: tuple[float, float] | None
    segments: tuple[int, ...] = ()
    """Segments of shared memory that the parent still maps; all others are given up."""
    free: int | None = None
    """One of them that may be written to."""
    copy: CopySpec | None = None
    """The copy goes into the last file that comes with the request."""

    @property
    def modules(self) -> frozenset[str]:
        """Those of the views' rules that are not this package's: later on they cannot be imported."""
        parts = (part for view in self.views or () for part in (view.time, view.space))
        names = {type(part).__module__ for part in parts}
        return frozenset(name for name in names if name.partition(".")[0] != "tubelet")

    def to_bytes(self) -> bytes:
        """As it goes over the socket: pickled, as only the parent sends requests.

        Raises:
            ValueError: a rule of a view that has no name to be found by.
        """
        try:
            return pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(f"the views cannot travel to the decoder process: {error}") from error


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
        """Its file descriptor, where the parent does not have it yet."""

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
    """A file descriptor of memory without a name, whose size stays."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("tubelet-clips", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, size_bytes)
        fcntl.fcntl(file, _F_ADD_SEALS, _FIXED_SIZE)
        return file
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


def answer(
    source: Source, request: Request, limits: Limits, target: int | None, memory: SharedMemory
) -> Reply:
    """Do what is asked; whatever goes wrong is part of the reply."""
    window_s = request.window_s
    try:
        if request.copy is not None and target is not None:
            with io.FileIO(target, "r+", closefd=False) as file:
                copied = transcode(source, request.copy, window_s=window_s, limits=limits, file=file)
            return Reply(info=copied.info, error=copied.error)
        if request.views is None:
            return Reply(info=probe(source, limits=limits))
        decoded = decode_views(
            source, request.views, window_s=window_s, limits=limits, allocate=memory.allocate
        )
        return _reply(decoded)
    except MemoryError:
        return Reply(failure=DecodeError("out_of_memory", f"over {limits.memory_bytes} bytes (--memory)"))
    except Exception as error:
        return Reply(failure=error)


def _reply(decoded: Decoded) -> Reply:
    return Reply(
        info=decoded.info,
        shapes=tuple(clip.frames.shape for clip in decoded.clips),
        times_s=tuple(clip.times_s for clip in decoded.clips),
        error=decoded.error,
    )


def _source(request: Request, link: socket.socket, files: list[int]) -> Source:
    """What the request is about, as :func:`tubelet.video.source.open_source` takes it."""
    if request.source == "file":
        return lambda: cast("BinaryIO", io.FileIO(files.pop(), "rb"))
    if request.source == "data":
        _, data, _ = wire.receive(link)
        return cast("bytes", data)

    def fetch(start: int, stop: int) -> bytes:
        wire.send(link, Kind.READ, RANGE.pack(start, stop))
        kind, body, _ = wire.receive(link)
        if kind == Kind.FAILED:
            code, message = json.loads(body)
            raise DecodeError(code, message)
        return cast("bytes", body)

    return lambda: cast("BinaryIO", RangedReader(fetch, request.size_bytes))


def _close_all_but_the_link(link_file: int) -> socket.socket:
    os.dup2(link_file, LINK)
    os.closerange(LINK + 1, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], link_file + 1))
    # Whoever reads what is complained about may be busy: that must not hold this process up.
    fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_NONBLOCK)
    return socket.socket(fileno=LINK)


def warm_up(modules: Iterable[str]) -> None:
    """Decode a picture, and fail at none: what modules and libraries load late they load now."""
    for name in (*_LOADED_LATE, *modules):
        with suppress(Exception):  # of another version; or a rule's, which the request that needs it tells
            importlib.import_module(name)
    picture = b"YUV4MPEG2 W16 H16 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(384)
    file = new_memory_file(len(picture))
    os.pwrite(file, picture, 0)
    sources: tuple[Source, ...] = (lambda: cast("BinaryIO", io.FileIO(file, "rb")), picture, bytes(16))
    for source in sources:
        for views in ((View(Uniform(1), ShortSide(8, 8)),), None):
            with suppress(OSError):  # the file is closed after its first use
                answer(source, Request("data", 0, views, None), Limits(), None, SharedMemory()).to_bytes()


def main(link_file: int, parent: int, given_limits: Mapping[str, Any], modules: Iterable[str]) -> None:
    """Serve requests that come over the socket ``link_file`` until it is closed.

    Args:
        link_file: file descriptor of the socket.
        parent: process id of the parent.
        given_limits: the fields of the limits of each request.
        modules: those of rules that are not this package's.
    """
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    link = _close_all_but_the_link(link_file)
    limits = Limits(**given_limits)
    warm_up(modules)
    base = address_space()
    if base:
        lower_limit(resource.RLIMIT_AS, base + limits.memory_bytes)
    lacking = contain(limits)
    wire.send(link, Kind.READY, json.dumps(lacking).encode())
    serve(link, limits)


def serve(link: socket.socket, limits: Limits) -> None:
    """Answer one request after the other until the socket is closed."""
    memory = SharedMemory()
    while True:
        try:
            _, body, files = wire.receive(link)
        except (EOFError, OSError):
            return
        try:
            request = pickle.loads(body)  # noqa: S301 - from the parent, who has nothing to gain here
            target = None if request.copy is None else files.pop()
            source = _source(request, link, files)
        except Exception as error:  # the module of a view's rule is not to be read here
            failure = ValueError(f"the views cannot travel to the decoder process: {error}")
            wire.send(link, Kind.REPLY, Reply(failure=failure).to_bytes())
            continue
        memory.keep(request.segments)
        memory.begin(request.free)
        reply = answer(source, request, limits, target, memory)
        wire.close_all(files)
        if target is not None:
            os.close(target)
        new = () if memory.file is None or reply.failure is not None else (memory.file,)
        wire.send(link, Kind.REPLY, replace(reply, segment=memory.segment).to_bytes(), new)
        del body, request, source, reply

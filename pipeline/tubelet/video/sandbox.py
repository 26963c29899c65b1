"""Decoding in a child process: no file takes more than it down, and who takes it over gains nothing.

The child is a fresh interpreter, never a fork of a process with threads. It has a deadline (it is killed),
a memory limit (its allocations fail), and is replaced from time to time and after every death. It opens no
file and reaches no store: this process does so for it. Clips come back through shared memory without a copy.
On Linux the kernel kills it when its parent dies.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tubelet.video import wire
from tubelet.video.child import Request
from tubelet.video.decode import Clip, Decoded
from tubelet.video.errors import DecodeError, ErrorCode
from tubelet.video.feed import Courier, Feed, opened
from tubelet.video.info import VideoInfo
from tubelet.video.limits import Limits
from tubelet.video.process import Child
from tubelet.video.reply import Reply
from tubelet.video.source import Source
from tubelet.video.transcode import Copied, CopySpec, new_file
from tubelet.video.views import View
from tubelet.video.wire import Kind, MalformedError

_FAT_BYTES = 1 << 30  # a child that keeps this much after a request is replaced
# Codes of the store, which this process asks itself: the child knows of them only what it is told.
_OF_THE_STORE = frozenset({ErrorCode.NOT_FOUND, ErrorCode.DENIED, ErrorCode.CREDENTIALS, ErrorCode.CHANGED})


class Sandbox:
    """A decoder process, started at the first request and replaced when it dies or has served its time.

    One request runs at a time (others wait their turn). Every failure is a :class:`DecodeError`: among
    others ``timeout`` (the child was killed at the deadline), ``crash`` (it died, or answered what no decoder
    answers), ``out_of_memory``, ``too_large``. Only a child that cannot start at all is a
    :class:`tubelet.video.DecoderStartError`, which is no file's.

    Args:
        limits: what one request may cost.
        recycle_after: requests after which the child is replaced.

    Attributes:
        bytes_read: of all sources so far, but of files whose child died.
    """

    def __init__(self, limits: Limits | None = None, recycle_after: int = 2000) -> None:
        if recycle_after < 1:
            raise ValueError(f"recycle_after must be at least 1, given {recycle_after}")
        self.limits = (limits or Limits()).here()
        self.bytes_read = 0
        self._recycle_after = recycle_after
        self._child: Child | None = None
        self._courier = Courier()
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
            self._courier.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return None if self._child is None else self._child.process.pid

    def probe(self, source: Source) -> VideoInfo:
        """Like :func:`tubelet.video.probe`. A callable ``source`` is called here, in another thread."""
        with self._lock:
            reply, _ = self._ask(source, Request("data", 0, None, None))
        assert reply.info is not None
        return reply.info

    def decode_views(
        self, source: Source, views: Sequence[View], *, window_s: tuple[float, float] | None = None
    ) -> Decoded:
        """Like :func:`tubelet.video.decode_views`; a callable ``source`` as in :meth:`probe`."""
        with self._lock:
            reply, memory = self._ask(source, Request("data", 0, tuple(views), window_s))
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
        """Like :func:`tubelet.video.transcode.transcode`; a callable ``source`` as in :meth:`probe`."""
        file = new_file()
        try:
            with self._lock:
                request = Request("data", 0, None, window_s, copy=spec)
                reply, _ = self._ask(source, request, (file.fileno(),))
        except BaseException:
            file.close()
            raise
        assert reply.info is not None
        file.seek(0)
        return Copied(file, reply.info, reply.error)

    def _ask(
        self, source: Source, request: Request, targets: tuple[int, ...] = ()
    ) -> tuple[Reply, npt.NDArray[np.uint8] | None]:
        request.to_bytes()  # what cannot travel is refused before a child is started for it
        child = self._ready_child(request.modules)
        end_s = time.monotonic() + self.limits.deadline_s
        try:
            with opened(source, self.limits.max_object_bytes, self._courier, end_s) as feed:
                return self._served(child, feed, request, targets, end_s)
        except TimeoutError:
            self._drop()
            raise DecodeError(
                "timeout", f"not done after {self.limits.deadline_s:g} s (--deadline)"
            ) from None
        except MalformedError as error:
            self._drop()
            raise DecodeError("crash", f"the decoder process sent {error}") from error

    def _served(
        self, child: Child, feed: Feed, request: Request, targets: tuple[int, ...], end_s: float
    ) -> tuple[Reply, npt.NDArray[np.uint8] | None]:
        child.served += 1
        segments = child.segments
        free = None if request.views is None else segments.pop_free()
        request = replace(
            request, source=feed.kind, size_bytes=feed.size_bytes, segments=segments.known, free=free
        )
        try:
            reply, files = self._exchange(child, feed, request, targets, end_s)
        except TimeoutError:
            raise
        except (EOFError, OSError):
            raise DecodeError("crash", f"the decoder process {self._cause_of_death()}") from None
        except (
            BaseException
        ):  # interrupted, say: what the child still answers would be taken for the next reply
            self._drop()
            raise
        try:
            if free is not None and reply.segment != free:
                segments.forget(free)
            memory = None
            if reply.failure is not None or request.views is None:
                if free is not None and reply.segment == free:
                    segments.forget(free)
            else:
                memory = self._memory(child, reply, files, request)
        finally:
            wire.close_all(files)
        child.log_what_it_says()
        if child.resident_bytes() > _FAT_BYTES:
            self._drop()
        if reply.failure is not None:
            raise reply.failure
        return reply, memory

    def _exchange(
        self, child: Child, feed: Feed, request: Request, targets: tuple[int, ...], end_s: float
    ) -> tuple[Reply, list[int]]:
        """Send the request, serve the child's reads, receive its reply."""
        link = child.link
        files = () if feed.file is None else (feed.file.fileno(),)
        before = child.file_bytes_read() if files else 0
        wire.send(link, Kind.REQUEST, request.to_bytes(), files + targets, end_s)
        if feed.data is not None:
            wire.send(link, Kind.DATA, feed.data, end_s=end_s)
            self.bytes_read += len(feed.data)
        failed: DecodeError | None = None
        while True:
            kind, body, sent = wire.receive(link, end_s, wire.FROM_CHILD)
            if kind == Kind.REPLY:
                break
            wire.close_all(sent)
            if kind != Kind.READ or len(body) != wire.RANGE.size:
                raise MalformedError(f"a message of kind {kind}")
            try:
                start, stop = wire.RANGE.unpack(body)
                data = feed.read(start, stop, self._courier, end_s)
            except DecodeError as error:
                failed = error
                wire.send(link, Kind.FAILED, json.dumps([error.code, error.message]).encode(), end_s=end_s)
            else:
                wire.send(link, Kind.DATA, data, end_s=end_s)
                self.bytes_read += len(data)
        if files:
            self.bytes_read += max(0, child.file_bytes_read() - before)
        try:
            return _checked(Reply.from_bytes(body), failed), sent
        except BaseException:
            wire.close_all(sent)
            raise

    def _memory(
        self, child: Child, reply: Reply, files: list[int], request: Request
    ) -> npt.NDArray[np.uint8]:
        if reply.segment is None or len(reply.shapes) != len(request.views or ()):
            raise MalformedError(f"{len(reply.shapes)} clips")
        size_bytes = sum(int(np.prod(shape, dtype=object)) for shape in reply.shapes)
        if size_bytes > self.limits.memory_bytes:
            raise MalformedError(f"clips of {size_bytes} bytes")
        memory = child.segments.lease(reply.segment, files, request.free)
        if size_bytes > len(memory):
            raise MalformedError(f"clips of {size_bytes} bytes in {len(memory)}")
        return memory

    def _ready_child(self, modules: frozenset[str]) -> Child:
        child = self._child
        if child is not None:
            spent = child.served >= self._recycle_after or child.process.poll() is not None
            if spent or not modules <= child.modules:
                modules |= child.modules
                self._drop()
        if self._child is None:
            self._child = Child.started(self.limits, modules)
        return self._child

    def _cause_of_death(self) -> str:
        child, self._child = self._child, None
        assert child is not None
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(1.0)
        status = child.end()
        if status is None:
            return "closed its connection"
        return (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def _checked(reply: Reply, failed: DecodeError | None) -> Reply:
    """The reply, with what the store said to this process in place of what the child says that it said."""
    said = reply.failure
    if not isinstance(said, DecodeError):
        return reply
    if failed is not None and said.code == failed.code:
        return replace(reply, failure=failed)
    if said.code in _OF_THE_STORE:
        raise MalformedError(f"the code {said.code} of a store that was not asked")
    return reply

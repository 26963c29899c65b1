"""What of a source goes to the child: an open descriptor, bytes, or ranges that it asks for.

The child reaches no file and no store. Whatever may wait for one runs on a thread that is left behind at the
deadline.
"""

from __future__ import annotations

import io
import os
import queue
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeVar, cast

from tubelet.ranges import MOST_BYTES
from tubelet.video.errors import DecodeError
from tubelet.video.source import Source, ranged, reading
from tubelet.video.wire import MalformedError

T = TypeVar("T")
_Queue = queue.SimpleQueue[tuple[Callable[[], object], Future[object]] | None]


class Courier:
    """Runs calls one after the other; what has not returned by its deadline is left behind."""

    def __init__(self) -> None:
        self._queue: _Queue | None = None
        self._last_use: weakref.finalize[..., Courier] | None = None

    def run(self, call: Callable[[], T], end_s: float) -> T:
        """What ``call`` gives, or raises.

        Raises:
            TimeoutError: it has not returned by ``end_s`` (time.monotonic).
        """
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._queue,), name="video-source", daemon=True).start()
            self._last_use = weakref.finalize(self, self._queue.put, None)
            self._last_use.atexit = False
        future: Future[T] = Future()
        self._queue.put((call, cast("Future[object]", future)))
        try:
            return future.result(max(0.0, end_s - time.monotonic()))
        except TimeoutError:
            if not future.done():
                self.close()
            raise

    def close(self) -> None:
        """End the thread, when what it runs has returned."""
        if self._last_use is not None:
            self._last_use()
        self._queue = self._last_use = None


def _serve(calls: _Queue) -> None:
    while (item := calls.get()) is not None:
        call, future = item
        try:
            future.set_result(call())
        except BaseException as error:  # it is the caller's to handle
            future.set_exception(error)
        del item, call, future


@dataclass(frozen=True)
class Feed:
    """An open source: one of ``file``, ``data`` and ``fetch``, and its size."""

    size_bytes: int
    file: io.FileIO | None = None
    data: bytes | memoryview | None = None
    fetch: Callable[[int, int], bytes] | None = None

    @property
    def kind(self) -> Literal["file", "data", "ranges"]:
        """How it reaches the child."""
        return "file" if self.file is not None else "data" if self.data is not None else "ranges"

    def read(self, start: int, stop: int, courier: Courier, end_s: float) -> bytes:
        """The bytes from ``start`` to ``stop``.

        Raises:
            MalformedError: nobody would ask for these.
            DecodeError: they cannot be read.
            TimeoutError: not by ``end_s``.
        """
        fetch = self.fetch
        if fetch is None or not 0 <= start < stop <= self.size_bytes or stop - start > MOST_BYTES:
            raise MalformedError(f"asked for bytes {start} to {stop} of {self.size_bytes}")

        def read() -> bytes:
            with reading():
                return fetch(start, stop)

        return courier.run(read, end_s)


@contextmanager
def opened(source: Source, most_bytes: int, courier: Courier, end_s: float) -> Iterator[Feed]:
    """Open a source for the child; what this opens is closed again, a file handed in stays open.

    Raises:
        DecodeError: what :func:`tubelet.video.source.reading` makes of a failure, ``too_large``.
        TimeoutError: not open by ``end_s``.
    """
    if isinstance(source, (str, os.PathLike)):
        with reading():
            file = io.FileIO(os.fspath(source), opener=_open_at_once)
        with file:
            yield _feed(file)
    elif callable(source):
        call = source

        def open_it() -> tuple[BinaryIO, Feed]:
            with reading():
                remote = call()
            return remote, _feed(remote) if isinstance(remote, (io.BytesIO, io.FileIO)) else _ranges(remote)

        remote, feed = courier.run(open_it, end_s)
        with remote:
            yield feed
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = memoryview(source).cast("B")
        yield Feed(len(data), data=data)
    elif hasattr(source, "read"):
        with reading():
            content = source.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise DecodeError("too_large", f"over {most_bytes} bytes")
        yield Feed(len(content), data=content)
    else:
        raise TypeError(f"not a source of bytes: {type(source).__name__}")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would be waited for


def _feed(file: io.BytesIO | io.FileIO) -> Feed:
    if isinstance(file, io.BytesIO):
        data = file.getvalue()
        return Feed(len(data), data=memoryview(data))
    with reading():
        status = os.fstat(file.fileno())
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise OSError(f"{file.name!r} is neither a file nor a disk")
    return Feed(status.st_size, file=file)


def _ranges(remote: BinaryIO) -> Feed:
    reader = ranged(remote)
    return Feed(reader.size_bytes, fetch=reader.fetch)

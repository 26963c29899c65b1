"""Messages between the sandbox and its child.

Pickled objects over a Unix socket, with open files beside them. Both ends are this library; nothing that
comes out of a video is ever unpickled.
"""

from __future__ import annotations

import pickle
import socket
import struct
import time
from typing import Any

_HEAD = struct.Struct("!Q")


def pack(message: Any) -> bytes:
    """A message as it goes over the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(body)) + body


def send(link: socket.socket, packed: bytes, files: tuple[int, ...] = ()) -> None:
    """Send a packed message, and file descriptors with its first bytes.

    Raises:
        OSError: the other end is gone.
    """
    if files:
        socket.send_fds(link, [packed[: _HEAD.size]], files)
        packed = packed[_HEAD.size :]
    link.sendall(packed)


def receive(link: socket.socket, end_s: float | None = None) -> tuple[Any, list[int]]:
    """The next message and the file descriptors sent with it.

    Raises:
        TimeoutError: not there by ``end_s`` (time.monotonic).
        EOFError: the other end is gone.
    """
    _limit(link, end_s)
    head, files, _, _ = socket.recv_fds(link, _HEAD.size, 4)
    head += _exactly(link, _HEAD.size - len(head), end_s) if head else b""
    if not head:
        raise EOFError
    (size,) = _HEAD.unpack(head)
    return pickle.loads(_exactly(link, size, end_s)), files  # noqa: S301 - see above


def _exactly(link: socket.socket, size: int, end_s: float | None) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        _limit(link, end_s)
        count = link.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return data


def _limit(link: socket.socket, end_s: float | None) -> None:
    # 0 would mean "do not wait at all", which raises another error.
    link.settimeout(None if end_s is None else max(0.001, end_s - time.monotonic()))

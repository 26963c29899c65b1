"""Messages between the sandbox and its child: a kind, a size, and as many bytes.

The child may be in the hands of whoever made the file that it decodes. So what it says has a fixed form and a
size limit, is read by :mod:`tubelet.video.reply`, and is never unpickled; what does not keep to the form is a
:class:`MalformedError`, which costs the child.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from enum import IntEnum

# The kind of a message, and the size of its body in bytes.
_HEAD = struct.Struct("!BQ")
RANGE = struct.Struct("!QQ")
"""Of :attr:`Kind.READ`: the first byte, and the one after the last."""


class Kind(IntEnum):
    """What a message is."""

    READY = 1
    """From the child: it has started; the layers of containment that its kernel lacks."""
    REQUEST = 2
    """To the child: probe or decode; where the source is a file, with its descriptor."""
    READ = 3
    """From the child: a range of the source is needed."""
    DATA = 4
    """To the child: the bytes of a source or of a range of it."""
    FAILED = 5
    """To the child: the range cannot be read, and why."""
    REPLY = 6
    """From the child: what came of the request; with the descriptor of new shared memory."""


MOST_REPLY_BYTES = 16 << 20
"""An hour of keyframes alone takes 2 MB, the times of 100,000 frames in each of twelve clips 10 MB."""
FROM_CHILD: Mapping[Kind, int] = {Kind.READY: 1 << 16, Kind.READ: RANGE.size, Kind.REPLY: MOST_REPLY_BYTES}
"""What the child may say, and in how many bytes at most."""


class MalformedError(Exception):
    """The child sent what no child of ours sends."""


def send(
    link: socket.socket,
    kind: Kind,
    body: bytes | memoryview,
    files: tuple[int, ...] = (),
    end_s: float | None = None,
) -> None:
    """Send a message, and file descriptors with its first bytes.

    Raises:
        TimeoutError: the other end has not taken it by ``end_s`` (time.monotonic).
        OSError: the other end is gone.
    """
    _limit(link, end_s)
    head = _HEAD.pack(kind, len(body))
    if files:
        socket.send_fds(link, [head], files)
        link.sendall(body)
    elif len(body) <= 1 << 16:
        link.sendall(head + body)
    else:
        link.sendall(head)
        link.sendall(body)


def receive(
    link: socket.socket, end_s: float | None = None, most: Mapping[Kind, int] | None = None
) -> tuple[Kind, bytearray, list[int]]:
    """The next message: its kind, its body, and the file descriptors sent with it.

    Args:
        link: the socket.
        end_s: by when it must be there whole (time.monotonic).
        most: which kinds are allowed, and how many bytes of each; None: any.

    Raises:
        TimeoutError: not there by ``end_s``.
        EOFError: the other end is gone.
        MalformedError: another kind than allowed, or too many bytes of it.
    """
    _limit(link, end_s)
    head, files, _, _ = socket.recv_fds(link, _HEAD.size, 4, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    try:
        if not head:
            raise EOFError
        head += _exactly(link, _HEAD.size - len(head), end_s)
        number, size = _HEAD.unpack(head)
        if most is not None and size > most.get(number, -1):
            raise MalformedError(f"a message of kind {number} with {size} bytes")
        return Kind(number), _exactly(link, size, end_s), files
    except BaseException:
        close_all(files)
        raise


def close_all(files: list[int]) -> None:
    """Close descriptors that came with a message."""
    while files:
        os.close(files.pop())


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

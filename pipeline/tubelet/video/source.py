"""Where the bytes come from: a path, bytes, an open file, or a callable that opens a seekable binary file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from tubelet.ranges import RangedReader
from tubelet.video.errors import DecodeError, ErrorCode
from tubelet.video.limits import Budget

Source = str | os.PathLike[str] | bytes | BinaryIO | Callable[[], BinaryIO]


class CheckedFile:
    """A file as FFmpeg sees it: every read within the deadline, every failure a :class:`DecodeError`."""

    name = "<object>"

    def __init__(self, file: BinaryIO | io.FileIO, size_bytes: int, budget: Budget) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._budget = budget
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes from the position, all that is left where negative; none at the end.

        Raises:
            DecodeError: ``timeout``, or what :func:`reading` makes of a failure.
        """
        self._budget.check_time()
        left = self._size_bytes - self._position
        size = left if size < 0 else min(size, left)
        if size <= 0:
            return b""
        with reading():
            self._file.seek(self._position)
            data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` bytes from ``whence``, never before the first; reads nothing.

        Returns:
            The position in bytes from the first.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The position in bytes from the first."""
        return self._position


class OpenSource:
    """A source while it is open.

    FFmpeg gets bytes and never a name: what an object is called must not decide how it is read, nor make
    its neighbours part of it.

    Attributes:
        size_bytes: of the object.
        at_hand: the whole object can be read at memory or disk speed, so that a pass over its packets is
            cheap.
    """

    def __init__(self, file: BinaryIO | io.FileIO, budget: Budget, *, at_hand: bool, owned: bool) -> None:
        self.at_hand = at_hand
        self._descriptor = file.fileno() if owned and isinstance(file, io.FileIO) else None
        with reading():
            self.size_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
        budget.check_object(self.size_bytes)
        self._file = file
        self._checked = CheckedFile(file, self.size_bytes, budget)

    def expect(self, begin: int, end: int) -> None:
        """The bytes from ``begin`` to ``end`` will be read."""
        if isinstance(self._file, RangedReader):
            self._file.expect(begin, end)

    def rewind(self) -> None:
        """Back to the first byte."""
        if self._descriptor is None:
            self._checked.seek(0)
        else:
            self._file.seek(0)

    def head(self, size: int) -> bytes:
        """The first bytes, FFmpeg's position left alone."""
        with self.side_reader() as file:
            file.seek(0)
            return file.read(size)

    @property
    def for_ffmpeg(self) -> tuple[str | CheckedFile, dict[str, str]]:
        """What FFmpeg opens, and with which options.

        A file of ours by its descriptor, which costs nothing, all else through calls. No other protocol is
        open to it.
        """
        if self._descriptor is None:
            return self._checked, {"protocol_whitelist": "none"}
        return "fd:", {"protocol_whitelist": "fd", "fd": str(self._descriptor)}

    @contextmanager
    def side_reader(self) -> Iterator[BinaryIO | io.FileIO | CheckedFile]:
        """A second look at the bytes that leaves FFmpeg's position alone."""
        file = self._checked if self._descriptor is None else self._file
        position = file.tell()
        try:
            yield file
        finally:
            file.seek(position)


@contextmanager
def reading() -> Iterator[None]:
    """Turns what a store raises into a :class:`DecodeError`.

    ``not_found``, ``denied``, ``io_error``; or what the error's own attribute ``error_code`` says, which is
    how a store tells that the content changed (this package knows no store).
    """
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DecodeError(ErrorCode.NOT_FOUND, f"no such object: {_text(error)}") from error
    except Exception as error:
        said = getattr(error, "error_code", None)
        denied = ErrorCode.DENIED if isinstance(error, PermissionError) else ErrorCode.IO_ERROR
        code = said if said in set(ErrorCode) else denied
        raise DecodeError(code, f"cannot be read: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def ranged(file: BinaryIO) -> RangedReader:
    """A file that lies far away, read in few and large pieces.

    Raises:
        DecodeError: what :func:`reading` makes of a failure.
    """
    if isinstance(file, RangedReader):
        return file
    with reading():
        size_bytes = file.seek(0, os.SEEK_END)

    def fetch(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    return RangedReader(fetch, size_bytes)


@contextmanager
def open_source(source: Source, budget: Budget) -> Iterator[OpenSource]:
    """Open a source; what this opens is closed again, a file handed in stays open.

    Raises:
        DecodeError: what :func:`reading` makes of it, ``too_large``.
    """
    if isinstance(source, (str, os.PathLike)):
        with reading():
            opened = io.FileIO(os.fspath(source))
        with opened:
            yield OpenSource(opened, budget, at_hand=True, owned=True)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield OpenSource(io.BytesIO(source), budget, at_hand=True, owned=True)
    elif callable(source):
        with reading():
            file = source()
        with file:
            at_hand = isinstance(file, (io.BytesIO, io.FileIO))
            near = file if at_hand else cast("BinaryIO", ranged(file))
            yield OpenSource(near, budget, at_hand=at_hand, owned=True)
    elif hasattr(source, "read"):
        at_hand = isinstance(source, (io.BytesIO, io.BufferedReader, io.FileIO))
        yield OpenSource(source, budget, at_hand=at_hand, owned=False)
    else:
        raise TypeError(f"not a source of bytes: {type(source).__name__}")

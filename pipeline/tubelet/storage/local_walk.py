"""List the files below a local folder in the order of their paths, with several questions under way.

On a disk across a network each folder, and the size and time of each file, is a question that waits for its
answer: asked one after the other, a million files take an hour.
"""

from __future__ import annotations

import os
import stat as stat_bits
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tubelet.config import UserError
from tubelet.storage.base import ObjectInfo

_WORKERS = 16
# Files of one folder that one worker asks for; those of a small folder are asked for where it is opened.
_CHUNK = 32
_SMALL = 128
# Folders and chunks that may be under way beyond what is being read, and entries of such folders in memory.
_MOST_AHEAD = 32
_MOST_ENTRIES = 100_000


_Files = list[os.DirEntry[str]]
_Known = tuple[ObjectInfo, ...]


def walk(folder: str) -> Iterator[ObjectInfo]:
    """Files below ``folder``, links followed unless they lead back to a folder above.

    Raises:
        UserError: a folder may not be listed.
    """
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="list") as pool:
        try:
            yield from _Walk(pool).below(_Folder(folder, "", (_identity(folder),)).opened())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Folder:
    """A folder: where it is, what the paths of objects in it begin with, and its identity and those above."""

    place: str
    prefix: str
    above: tuple[tuple[int, int], ...]

    def opened(self) -> _Opened:
        """It and what lies in it, in the order of the paths."""
        try:
            with os.scandir(self.place) as entries:
                found = [(entry, is_folder(entry)) for entry in entries]
        except PermissionError as error:
            raise UserError(
                f"no permission to list {self.place}: change its mode, or leave it out of SRC"
            ) from error
        # A folder sorts as `name/`: the order of the paths, which is also the order of an S3 listing.
        found.sort(key=lambda one: os.fsencode(one[0].name) + (b"/" if one[1] else b""))
        parts: list[os.DirEntry[str] | _Files] = []
        for entry, folder_below in found:
            if folder_below:
                parts.append(entry)
            elif parts and isinstance(parts[-1], list) and len(parts[-1]) < _CHUNK:
                parts[-1].append(entry)
            else:
                parts.append([entry])
        if len(found) > _SMALL:
            return _Opened(self, len(found), parts)
        known = [self.files(part) if isinstance(part, list) else part for part in parts]
        return _Opened(self, len(found), known)

    def folder(self, entry: os.DirEntry[str]) -> _Folder | None:
        """A folder in it; None where it is a link back to one above."""
        identity = _identity(entry.path)
        if identity in self.above:
            return None
        return _Folder(entry.path, f"{self.prefix}{entry.name}/", (*self.above, identity))

    def files(self, entries: _Files) -> _Known:
        """Those of its entries that are files."""
        found = (_describe(entry, self.prefix + entry.name) for entry in entries)
        return tuple(info for info in found if info is not None)


@dataclass(frozen=True)
class _Opened:
    """A folder and its entries: folders, runs of files, and files whose size and time are known."""

    folder: _Folder
    entries: int
    parts: Sequence[os.DirEntry[str] | _Files | _Known]


class _Walk:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        # Entries of the largest folder so far; until that is known, one folder is opened at a time.
        self._largest = _MOST_ENTRIES
        self._any = False

    def below(self, opened: _Opened) -> Iterator[ObjectInfo]:
        """The files below a folder."""
        left = deque(opened.parts)
        waiting: deque[_Known | Future[_Known] | Future[_Opened | None]] = deque()
        self._ask(opened.folder, left, waiting)
        while waiting:
            one = waiting.popleft()
            found = one.result() if isinstance(one, Future) else one
            self._ask(opened.folder, left, waiting)
            if isinstance(found, tuple):
                yield from found
            elif found is not None:
                yield from self.below(found)

    def _ask(self, folder: _Folder, left: deque[Any], waiting: deque[Any]) -> None:
        """Put as many questions as may be under way."""
        while left and len(waiting) < (self._ahead() if isinstance(left[0], os.DirEntry) else _MOST_AHEAD):
            part = left.popleft()
            if isinstance(part, os.DirEntry):
                waiting.append(self._pool.submit(self._open, folder, part))
            else:
                waiting.append(self._pool.submit(folder.files, part) if isinstance(part, list) else part)

    def _ahead(self) -> int:
        """Folders that may be opened before they are read: the entries of all of them are in memory."""
        return max(1, min(_MOST_AHEAD, _MOST_ENTRIES // self._largest))

    def _open(self, folder: _Folder, entry: os.DirEntry[str]) -> _Opened | None:
        try:
            below = folder.folder(entry)
            opened = None if below is None else below.opened()
        except FileNotFoundError:  # gone since its name was read
            return None
        if opened is not None:
            with self._lock:
                self._largest = max(opened.entries, self._largest if self._any else 1)
                self._any = True
        return opened


def local_etag(status: os.stat_result) -> str:
    """Modification time in nanoseconds and size, both in hexadecimal."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def utf8(name: str) -> str:
    r"""File names that are not UTF-8 cannot stand in a table: their odd bytes are written as ``\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _describe(entry: os.DirEntry[str], path: str) -> ObjectInfo | None:
    """None for what is no file (a socket, a pipe), or gone by now; a dangling link is an object."""
    try:
        status = entry.stat()
    except OSError:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
    if not stat_bits.S_ISREG(status.st_mode) and not stat_bits.S_ISLNK(status.st_mode):
        return None
    return ObjectInfo(_uri(entry.path), utf8(path), local_etag(status), status.st_size)


def _uri(path: str) -> str:
    """The path; a ``file://`` URI where it is not UTF-8, which a table can hold and which can be opened."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino

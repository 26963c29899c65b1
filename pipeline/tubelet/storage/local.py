"""Local folders as a store."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat as stat_bits
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tubelet.config import UserError
from tubelet.storage.base import (
    DEFAULT_OPTIONS,
    ObjectChangedError,
    ObjectInfo,
    StorageOptions,
    write_if_unchanged,
)

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def local_etag(status: os.stat_result) -> str:
    """Modification time in nanoseconds and size, both in hexadecimal."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


class LocalStore:
    """Files below folders; replaced by rename, created exclusively by link."""

    def __init__(self, options: StorageOptions = DEFAULT_OPTIONS) -> None:
        del options  # they are about stores that ask who one is

    def stat(self, uri: str) -> ObjectInfo | None:
        try:
            status = os.stat(uri)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise UserError(f"no permission to read {uri}: change its mode or owner") from error
        if not stat_bits.S_ISREG(status.st_mode):
            return None
        return ObjectInfo(uri, os.path.basename(uri), local_etag(status), status.st_size)

    def walk(self, uri: str) -> Iterator[ObjectInfo]:
        single = self.stat(uri)
        if single is not None:
            yield single
            return
        _need_folder(uri)
        yield from _walk(uri, "", (_identity(uri),))

    def holds_any(self, uri: str) -> bool:
        return os.path.isdir(uri) and any(True for _ in _walk(uri, "", (_identity(uri),)))

    def names(self, uri: str) -> list[str]:
        try:
            return sorted(os.listdir(uri))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folders(self, uri: str) -> list[str]:
        _need_folder(uri)
        with os.scandir(uri) as entries:
            return sorted(_utf8(entry.name) for entry in entries if _is_folder(entry))

    def read(self, uri: str) -> bytes:
        return Path(uri).read_bytes()

    def read_version(self, uri: str) -> tuple[bytes, str]:
        with open(uri, "rb") as file:
            return file.read(), local_etag(os.fstat(file.fileno()))

    def write(self, uri: str, data: bytes) -> None:
        temporary = _temporary(uri)
        try:
            _write_through(temporary, data)
            os.replace(temporary, uri)
        finally:
            temporary.unlink(missing_ok=True)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        temporary = _temporary(uri)
        try:
            _write_through(temporary, data)
            os.link(temporary, uri)  # whole content appears at once, and only if the name is free
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the name is still taken by one only
            return _create(uri, data)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def put_if_unchanged(self, uri: str, data: bytes, etag: str) -> bool:
        return write_if_unchanged(self, uri, data, etag)

    def upload(self, local: Path, uri: str) -> None:
        temporary = _temporary(uri)
        try:
            shutil.copyfile(local, temporary)
            os.replace(temporary, uri)
        finally:
            temporary.unlink(missing_ok=True)

    def download(self, uri: str, local: Path) -> None:
        shutil.copyfile(uri, local)

    def delete(self, uri: str) -> None:
        Path(uri).unlink(missing_ok=True)

    def delete_tree(self, uri: str) -> None:
        if os.path.isdir(uri) and not os.path.islink(uri):
            shutil.rmtree(uri, ignore_errors=True)
        else:
            self.delete(uri)

    def filesystem(self, uri: str) -> tuple[FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), uri


def open_local(path: str, etag: str | None) -> io.FileIO:
    """Open a local file for unbuffered reading.

    Raises:
        FileNotFoundError: it is gone.
        ObjectChangedError: its modification time or size is not that of ``etag``.
    """
    file = open(path, "rb", buffering=0)  # noqa: SIM115 - handed to the caller, who reads in large pieces
    if etag is not None and local_etag(os.fstat(file.fileno())) != etag:
        file.close()
        raise ObjectChangedError(f"{path} changed since it was listed")
    return file


def _need_folder(uri: str) -> None:
    if not os.path.isdir(uri):
        raise UserError(
            f"{uri} does not exist: give a folder with videos, or a URI such as s3://BUCKET/PREFIX"
        )


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[ObjectInfo]:
    """Files below ``folder``, links followed unless they lead back to a folder ``above``."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry, _is_folder(entry)) for entry in entries]
    except PermissionError as error:
        raise UserError(f"no permission to list {folder}: change its mode, or leave it out of SRC") from error
    # A folder sorts as `name/`: the order of the paths, which is also the order of an S3 listing.
    for entry, folder_below in sorted(found, key=lambda f: os.fsencode(f[0].name) + (b"/" if f[1] else b"")):
        path = prefix + entry.name
        if folder_below:
            identity = _identity(entry.path)
            if identity not in above:
                yield from _walk(entry.path, f"{path}/", (*above, identity))
        else:
            info = _describe(entry, path)
            if info is not None:
                yield info


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _describe(entry: os.DirEntry[str], path: str) -> ObjectInfo | None:
    """None for what is no file (sockets, pipes); a dangling link is an object that cannot be read."""
    try:
        status = entry.stat()
    except OSError:
        status = entry.stat(follow_symlinks=False)
    if not stat_bits.S_ISREG(status.st_mode) and not stat_bits.S_ISLNK(status.st_mode):
        return None
    return ObjectInfo(_utf8(entry.path), _utf8(path), local_etag(status), status.st_size)


def _utf8(name: str) -> str:
    """File names that are not UTF-8 cannot stand in a table: their odd bytes are written as ``\\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _temporary(uri: str) -> Path:
    target = Path(uri)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"cannot write {uri}: a part of its path is a file, not a folder") from error
    except PermissionError as error:
        raise UserError(f"no permission to write {uri}: choose another place") from error
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _write_through(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except PermissionError as error:
        raise UserError(f"no permission to write in {path.parent}: choose another place") from error


def _create(uri: str, data: bytes) -> bool:
    try:
        with open(uri, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True

"""Local folders as a store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import secrets
import shutil
import stat as stat_bits
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from typing_extensions import override

from tubelet.config import UserError
from tubelet.storage.base import (
    DEFAULT_OPTIONS,
    Conditions,
    ObjectInfo,
    StorageOptions,
    Store,
    write_if_unchanged,
)
from tubelet.storage.errors import ObjectChangedError, local_writes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# What `link` says where there cannot be hard links: FAT, some network and FUSE file systems.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_COPY_BYTES = 8 * 1024 * 1024


def local_etag(status: os.stat_result) -> str:
    """Modification time in nanoseconds and size, both in hexadecimal."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


class LocalStore(Store):
    """Files below folders; replaced by rename, created exclusively by link."""

    def __init__(self, options: StorageOptions = DEFAULT_OPTIONS) -> None:
        del options  # they are about stores that ask who one is

    @override
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

    @override
    def walk(self, uri: str) -> Iterator[ObjectInfo]:
        single = self.stat(uri)
        if single is not None:
            yield single
            return
        _need_folder(uri)
        yield from _walk(uri, "", (_identity(uri),))

    @override
    def holds_any(self, uri: str) -> bool:
        return os.path.isdir(uri) and any(True for _ in _walk(uri, "", (_identity(uri),)))

    @override
    def names(self, uri: str) -> list[str]:
        try:
            return sorted(os.listdir(uri))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @override
    def folders(self, uri: str) -> list[str]:
        _need_folder(uri)
        with os.scandir(uri) as entries:
            return sorted(_utf8(entry.name) for entry in entries if _is_folder(entry))

    @override
    def read(self, uri: str) -> bytes:
        return Path(uri).read_bytes()

    @override
    def read_version(self, uri: str) -> tuple[bytes, str]:
        with open(uri, "rb") as file:
            return file.read(), local_etag(os.fstat(file.fileno()))

    @override
    def write(self, uri: str, data: bytes) -> None:
        with _beside(uri) as temporary:
            _write_through(temporary, data)
            os.replace(temporary, uri)

    @override
    def put_if_absent(self, uri: str, data: bytes) -> bool:
        with _beside(uri) as temporary:
            _write_through(temporary, data)
            try:
                os.link(temporary, uri)  # whole content appears at once, and only if the name is free
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _rename_if_absent(temporary, uri)
        return True

    @override
    def put_if_unchanged(self, uri: str, data: bytes, etag: str) -> bool:
        return write_if_unchanged(self, uri, data, etag)

    @override
    def check_conditions(self, uri: str) -> Conditions:
        del uri
        return Conditions(unchanged=False)

    @override
    def upload(self, local: Path, uri: str) -> None:
        with _beside(uri) as temporary:
            with local.open("rb") as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
                _sync(target)
            os.replace(temporary, uri)

    @override
    def download(self, uri: str, local: Path) -> None:
        with local_writes(local):
            shutil.copyfile(uri, local)

    @override
    def copy(self, uri: str, target: str) -> None:
        with _beside(target) as temporary:
            shutil.copyfile(uri, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)

    @override
    def delete(self, uri: str) -> None:
        Path(uri).unlink(missing_ok=True)

    @override
    def delete_tree(self, uri: str) -> None:
        if os.path.isdir(uri) and not os.path.islink(uri):
            shutil.rmtree(uri, ignore_errors=True)
        else:
            self.delete(uri)

    @override
    def signed_url(self, uri: str, lifetime_s: int) -> str | None:
        return None

    @override
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
    return ObjectInfo(_uri(entry.path), _utf8(path), local_etag(status), status.st_size)


def _uri(path: str) -> str:
    """The path; a ``file://`` URI where it is not UTF-8, which a table can hold and which can be opened."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def _utf8(name: str) -> str:
    r"""File names that are not UTF-8 cannot stand in a table: their odd bytes are written as ``\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _beside(uri: str) -> Iterator[Path]:
    """A name for a temporary file in the folder of ``uri``, which is made; nothing is left of the file."""
    target = Path(uri)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with local_writes(target):
        try:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError from error
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                temporary.unlink()


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _rename_if_absent(temporary: Path, uri: str) -> bool:
    """Give ``temporary`` the name ``uri`` unless it is taken, where the file system knows no hard links.

    Who looks and renames holds a lock meanwhile, on a hidden file beside; it ends with its process.
    """
    target = Path(uri)
    claim = target.with_name(f".{target.name}.claim")
    while True:
        with claim.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise UserError(
                    f"{target.parent} has neither hard links nor file locks: choose another place"
                ) from error
            if not _is_still(file, claim):  # who held it before us took it away
                continue
            try:
                if os.path.lexists(target):
                    return False
                os.rename(temporary, target)
                return True
            finally:
                claim.unlink()


def _is_still(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

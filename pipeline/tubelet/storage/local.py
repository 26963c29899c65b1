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
from tubelet.storage.local_walk import is_folder, local_etag, utf8, walk

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# What `link` says where there cannot be hard links: FAT, some network and FUSE file systems.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_COPY_BYTES = 8 * 1024 * 1024


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
        yield from walk(uri)

    @override
    def holds_any(self, uri: str) -> bool:
        return os.path.isdir(uri) and any(True for _ in walk(uri))

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
            return sorted(utf8(entry.name) for entry in entries if is_folder(entry))

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

"""Google Cloud Storage through PyArrow's filesystem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.config import UserError
from tubelet.storage.base import Conditions, ObjectInfo, StorageOptions, write_if_unchanged

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_COPY_BYTES = 8 * 1024 * 1024


class GcsStore:
    """Objects in Google buckets. The etag is made of modification time and size."""

    def __init__(self, options: StorageOptions) -> None:
        from pyarrow.fs import GcsFileSystem

        self._fs = GcsFileSystem(anonymous=options.anonymous)

    def stat(self, uri: str) -> ObjectInfo | None:
        found = self._info(uri)
        return _describe(found, uri.rpartition("/")[2]) if found.is_file else None

    def walk(self, uri: str) -> Iterator[ObjectInfo]:
        from pyarrow.fs import FileSelector

        root = _path(uri)
        single = self.stat(uri)
        if single is not None:
            yield single
            return
        try:
            found = self._fs.get_file_info(FileSelector(root, recursive=True))
        except OSError as error:
            raise _explained(uri, error) from error
        files = sorted((f for f in found if f.is_file), key=lambda f: f.path.encode())
        if not files:
            raise UserError(f"there is nothing under {uri}: check the bucket and the prefix")
        for file in files:
            yield _describe(file, file.path[len(root) + 1 :])

    def holds_any(self, uri: str) -> bool:
        return bool(self.names(uri))

    def names(self, uri: str) -> list[str]:
        return sorted(item.base_name for item in self._directly_under(uri))

    def folders(self, uri: str) -> list[str]:
        return sorted(item.base_name for item in self._directly_under(uri) if not item.is_file)

    def _directly_under(self, uri: str) -> list[Any]:
        from pyarrow.fs import FileSelector

        return list(self._fs.get_file_info(FileSelector(_path(uri), allow_not_found=True)))

    def read(self, uri: str) -> bytes:
        with self._fs.open_input_file(_path(uri)) as file:
            return bytes(file.read())

    def write(self, uri: str, data: bytes) -> None:
        with self._fs.open_output_stream(_path(uri)) as file:
            file.write(data)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        if self.stat(uri) is not None:
            return False
        self.write(uri, data)
        return True

    def read_version(self, uri: str) -> tuple[bytes, str]:
        found = self.stat(uri)
        if found is None:
            raise FileNotFoundError(f"{uri} does not exist")
        return self.read(uri), found.etag

    def put_if_unchanged(self, uri: str, data: bytes, etag: str) -> bool:
        return write_if_unchanged(self, uri, data, etag)

    def check_conditions(self, uri: str) -> Conditions:
        del uri
        return Conditions(unchanged=False)

    def upload(self, local: Path, uri: str) -> None:
        with local.open("rb") as source, self._fs.open_output_stream(_path(uri)) as target:
            while chunk := source.read(_COPY_BYTES):
                target.write(chunk)

    def download(self, uri: str, local: Path) -> None:
        with self._fs.open_input_stream(_path(uri)) as source, local.open("wb") as target:
            while chunk := source.read(_COPY_BYTES):
                target.write(chunk)

    def delete(self, uri: str) -> None:
        if self.stat(uri) is not None:
            self._fs.delete_file(_path(uri))

    def delete_tree(self, uri: str) -> None:
        if self.names(uri):
            self._fs.delete_dir(_path(uri))
        self.delete(uri)

    def filesystem(self, uri: str) -> tuple[FileSystem, str]:
        return self._fs, _path(uri)

    def fetcher(self, uri: str, etag: str | None) -> Callable[[int, int], bytes]:
        del etag  # PyArrow has no conditional read

        def fetch(start: int, stop: int) -> bytes:
            with self._fs.open_input_file(_path(uri)) as file:
                return bytes(file.read_at(stop - start, start))

        return fetch

    def _info(self, uri: str) -> Any:
        try:
            return self._fs.get_file_info(_path(uri))
        except OSError as error:
            raise _explained(uri, error) from error


def _path(uri: str) -> str:
    return uri.removeprefix("gs://")


def _describe(info: Any, path: str) -> ObjectInfo:
    return ObjectInfo(f"gs://{info.path}", path, f"{info.mtime_ns:x}-{info.size:x}", info.size)


def _explained(uri: str, error: OSError) -> UserError:
    reason = (str(error).splitlines() or [""])[0][:200]
    return UserError(
        f"cannot read {uri}: {reason}\ncheck the bucket, GOOGLE_APPLICATION_CREDENTIALS, or --anonymous"
    )

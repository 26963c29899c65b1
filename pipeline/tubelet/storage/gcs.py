"""Google Cloud Storage: through PyArrow's filesystem, and Google's own client for conditional writes."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from tubelet.config import UserError
from tubelet.storage.base import Conditions, ObjectInfo, RemoteStore, StorageOptions
from tubelet.storage.errors import CredentialsError, DeniedError, StoreUnavailableError, local_writes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from tubelet.storage.gcs_conditions import GoogleConditions

_T = TypeVar("_T")
# Names another server; PyArrow's client and ours both go by it.
EMULATOR = "CLOUD_STORAGE_EMULATOR_ENDPOINT"
_COPY_BYTES = 8 * 1024 * 1024
# Between them, a machine without a network knows within a minute.
_RETRY_LIMIT_S = 10.0
_DEADLINE_S = 30.0
_HINT = "check the bucket, the network, GOOGLE_APPLICATION_CREDENTIALS, or --anonymous"
_STATUS = re.compile(r"google::cloud::Status\((\w+):")
_NETWORK = re.compile(r"CURL error \[\d+\]=(.*?) error_info")
_KINDS: dict[str, type[Exception]] = {
    "UNAVAILABLE": StoreUnavailableError,
    "DEADLINE_EXCEEDED": StoreUnavailableError,
    "RESOURCE_EXHAUSTED": StoreUnavailableError,
    "INTERNAL": StoreUnavailableError,
    "PERMISSION_DENIED": DeniedError,
    "UNAUTHENTICATED": CredentialsError,
}


class GcsStore(RemoteStore):
    """Objects in Google buckets.

    The etag of a listing is made of modification time and size; of :meth:`read_version` it is the generation.
    """

    def __init__(self, options: StorageOptions) -> None:
        from pyarrow.fs import GcsFileSystem

        self._options = options
        self._known = Conditions()  # until the store was asked, the best
        # An emulator knows nobody, and PyArrow asks Google for a token all the same.
        self._anonymous = options.anonymous or EMULATOR in os.environ
        # Without a limit, what cannot be reached is tried for a quarter of an hour.
        self._fs = GcsFileSystem(
            anonymous=self._anonymous, retry_time_limit=timedelta(seconds=_RETRY_LIMIT_S)
        )

    @override
    def stat(self, uri: str) -> ObjectInfo | None:
        found = self._info(uri)
        return _describe(found, uri.rpartition("/")[2]) if found.is_file else None

    @override
    def walk(self, uri: str) -> Iterator[ObjectInfo]:
        single = self.stat(uri)
        if single is not None:
            yield single
            return
        bucket, _, key = _path(uri).partition("/")
        prefix, found = f"{key}/" if key else "", False
        for blob in self._conditions.list_objects(bucket, prefix):
            path = blob.name[len(prefix) :]
            if path and not path.endswith("/"):  # `folder/` is an empty marker some tools leave
                found = True
                etag = f"{_nanoseconds(blob.updated):x}-{blob.size:x}"
                yield ObjectInfo(f"gs://{bucket}/{blob.name}", path, etag, blob.size)
        if not found:
            raise UserError(f"there is nothing under {uri}: check the bucket and the prefix")

    @override
    def holds_any(self, uri: str) -> bool:
        return bool(self.names(uri))

    @override
    def names(self, uri: str) -> list[str]:
        return sorted(item.base_name for item in self._directly_under(uri))

    @override
    def folders(self, uri: str) -> list[str]:
        return sorted(item.base_name for item in self._directly_under(uri) if not item.is_file)

    def _directly_under(self, uri: str) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(_path(uri), allow_not_found=True)
        return list(_within_deadline(uri, lambda: self._fs.get_file_info(selector)))

    @override
    def read(self, uri: str) -> bytes:
        with _translated(uri), self._fs.open_input_file(_path(uri)) as file:
            return bytes(file.read())

    @override
    def write(self, uri: str, data: bytes) -> None:
        with _translated(uri), self._fs.open_output_stream(_path(uri)) as file:
            file.write(data)

    @override
    def put_if_absent(self, uri: str, data: bytes) -> bool:
        if self._options.single_writer and not self._known.absent:
            if self.stat(uri) is not None:
                return False
            self.write(uri, data)
            return True
        return self._conditions.put(uri, data)

    @override
    def read_version(self, uri: str) -> tuple[bytes, str]:
        return self._conditions.read(uri)

    @override
    def put_if_unchanged(self, uri: str, data: bytes, etag: str) -> bool:
        if self._known.unchanged:
            return self._conditions.put(uri, data, int(etag))
        try:
            if self._conditions.read(uri)[1] != etag:
                return False
        except FileNotFoundError:
            return False
        self.write(uri, data)
        return True

    @override
    def check_conditions(self, uri: str) -> Conditions:
        self._known = self._conditions.ask(uri)
        return self._known

    @functools.cached_property
    def _conditions(self) -> GoogleConditions:
        from tubelet.storage.gcs_conditions import GoogleConditions

        endpoint = os.environ.get(EMULATOR)
        return GoogleConditions(endpoint, anonymous=self._anonymous, retry_s=_RETRY_LIMIT_S, hint=_HINT)

    @override
    def upload(self, local: Path, uri: str) -> None:
        with local.open("rb") as source, _translated(uri), self._fs.open_output_stream(_path(uri)) as target:
            while chunk := source.read(_COPY_BYTES):
                target.write(chunk)

    @override
    def download(self, uri: str, local: Path) -> None:
        with (
            local_writes(local),
            _translated(uri),
            self._fs.open_input_stream(_path(uri)) as source,
            local.open("wb") as target,
        ):
            while chunk := source.read(_COPY_BYTES):
                target.write(chunk)

    @override
    def copy(self, uri: str, target: str) -> None:
        with _translated(uri):
            self._fs.copy_file(_path(uri), _path(target))

    @override
    def delete(self, uri: str) -> None:
        if self.stat(uri) is not None:
            with _translated(uri):
                self._fs.delete_file(_path(uri))

    @override
    def delete_tree(self, uri: str) -> None:
        if self.names(uri):
            with _translated(uri):
                self._fs.delete_dir(_path(uri))
        self.delete(uri)

    @override
    def signed_url(self, uri: str, lifetime_s: int) -> str | None:
        return None

    @override
    def filesystem(self, uri: str) -> tuple[FileSystem, str]:
        return self._fs, _path(uri)

    @override
    def fetcher(self, uri: str, etag: str | None) -> Callable[[int, int], bytes]:
        del etag  # PyArrow has no conditional read

        def fetch(start: int, stop: int) -> bytes:
            with _translated(uri), self._fs.open_input_file(_path(uri)) as file:
                data = bytes(file.read_at(stop - start, start))
            if len(data) != stop - start:
                raise StoreUnavailableError(f"reading {uri} failed: {len(data)} of {stop - start} bytes came")
            return data

        return fetch

    def _info(self, uri: str) -> Any:
        return _within_deadline(uri, lambda: self._fs.get_file_info(_path(uri)))


def _path(uri: str) -> str:
    return uri.removeprefix("gs://")


def _describe(info: Any, path: str) -> ObjectInfo:
    return ObjectInfo(f"gs://{info.path}", path, f"{info.mtime_ns:x}-{info.size:x}", info.size)


def _nanoseconds(moment: datetime) -> int:
    """As PyArrow gives the modification time: exactly, which a float of seconds is not."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def _within_deadline(uri: str, ask: Callable[[], _T]) -> _T:
    """What ``ask`` answers; a server that takes the connection and says nothing is not waited for."""
    answers: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="gcs-request", daemon=True)
    thread.start()
    thread.join(_DEADLINE_S)
    with _translated(uri):
        if errors:
            raise errors[0]
    if not answers:
        raise StoreUnavailableError(f"cannot reach {uri}: no answer in {_DEADLINE_S:.0f} s; {_HINT}")
    return answers[0]


@contextlib.contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn what the Google client says into our own errors (see :mod:`tubelet.storage.errors`)."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except OSError as error:
        text = str(error)
        status = _STATUS.search(text)
        network = _NETWORK.search(text)
        reason = network[1] if network else (text.splitlines() or [""])[0][:160]
        kind = _KINDS.get(status[1] if status else "", UserError)
        if network:
            kind = StoreUnavailableError
        raise kind(f"cannot reach {uri}: {reason}; {_HINT}") from error

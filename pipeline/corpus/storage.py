"""Local folders, S3 and Google Cloud Storage behind one set of functions that take a URI or a plain path.

URIs: ``s3://bucket/key`` and ``gs://bucket/key`` are taken literally (no percent-decoding: keys may hold
spaces, ``%``, ``#``, ``?`` and ``+``); ``file://`` URIs are percent-decoded (RFC 8089) and, like plain
paths, become absolute local paths. Credentials and endpoints come from the usual places: ``AWS_*``
variables, profiles, roles, session tokens, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``.

Local folders are listed in the order of the UTF-8 bytes of the path, as S3 does; other stores in their own.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import unquote, urlsplit

from pipeline.config import Settings, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_REMOTE = ("s3://", "gs://")


class StorageOptions(Settings):
    """How to reach a store."""

    anonymous: bool = False
    """Send unsigned requests: for public buckets."""


DEFAULT_OPTIONS = StorageOptions()


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing.

    Attributes:
        uri: where it is (``s3://bucket/key``, or an absolute path).
        path: its path relative to what was listed, with ``/`` between parts.
        etag: changes when the content does. The store's own; modification time (ns) and size for local files.
        size_bytes: its size.
    """

    uri: str
    path: str
    etag: str
    size_bytes: int


class ObjectChangedError(OSError):
    """The object's content is no longer the one its etag named."""


class Store(Protocol):
    """What each kind of store can do; ``uri`` is always a normalised one of its own kind."""

    def stat(self, uri: str) -> ObjectInfo | None: ...
    def walk(self, uri: str) -> Iterator[ObjectInfo]: ...
    def holds_any(self, uri: str) -> bool: ...
    def names(self, uri: str) -> list[str]: ...
    def folders(self, uri: str) -> list[str]: ...
    def read(self, uri: str) -> bytes: ...
    def read_version(self, uri: str) -> tuple[bytes, str]: ...
    def write(self, uri: str, data: bytes) -> None: ...
    def put_if_absent(self, uri: str, data: bytes) -> bool: ...
    def put_if_unchanged(self, uri: str, data: bytes, etag: str) -> bool: ...
    def upload(self, local: Path, uri: str) -> None: ...
    def download(self, uri: str, local: Path) -> None: ...
    def delete(self, uri: str) -> None: ...
    def delete_tree(self, uri: str) -> None: ...
    def filesystem(self, uri: str) -> tuple[FileSystem, str]: ...


def write_if_unchanged(store: Store, uri: str, data: bytes, etag: str) -> bool:
    """``put_if_unchanged`` for stores that have no condition on a write: a check, then the write."""
    found = store.stat(uri)
    if found is None or found.etag != etag:
        return False
    store.write(uri, data)
    return True


class RemoteStore(Store, Protocol):
    """A store whose objects are read in ranges."""

    def fetcher(self, uri: str, etag: str | None) -> Callable[[int, int], bytes]:
        """A function ``(start, stop) -> bytes``; other content than that of ``etag`` is refused."""
        ...


def normalise_uri(uri: str | os.PathLike[str]) -> str:
    """An absolute path for local files, ``s3://bucket/key`` or ``gs://bucket/key`` without a trailing slash.

    Raises:
        UserError: a scheme other than ``s3``, ``gs`` and ``file``; a bucket without a name.
    """
    text = os.fspath(uri)
    for scheme in _REMOTE:
        if text.lower().startswith(scheme):
            rest = text[len(scheme) :].rstrip("/")
            if not rest.split("/", 1)[0]:
                raise UserError(f"{text!r} names no bucket: write {scheme}BUCKET/PREFIX")
            return scheme + rest
    if text.lower().startswith("file:"):
        parts = urlsplit(text.replace("?", "%3F").replace("#", "%23"))
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{text!r} names the host {parts.netloc!r}: write file:///PATH for a local file")
        return os.path.abspath(unquote(parts.path))
    scheme, sep, _ = text.partition("://")
    if sep and scheme.isalnum():
        raise UserError(
            f"cannot read {text!r}: the scheme is {scheme!r}; use s3://, gs://, file:// or a plain path"
        )
    if not text:
        raise UserError("an empty path was given: name a folder, or a URI such as s3://BUCKET/PREFIX")
    return os.path.abspath(os.path.expanduser(text))


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether ``uri`` lies in an object store, and so can be reached from other machines."""
    return os.fspath(uri).lower().startswith(_REMOTE)


def join(uri: str | os.PathLike[str], *parts: str) -> str:
    """``uri`` with ``parts`` below it."""
    return "/".join([normalise_uri(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def parent(uri: str | os.PathLike[str]) -> str:
    """The folder, prefix or bucket that holds ``uri``."""
    return normalise_uri(normalise_uri(uri).rpartition("/")[0] or "/")


def name_of(uri: str | os.PathLike[str]) -> str:
    """The last part of ``uri``."""
    return normalise_uri(uri).rpartition("/")[2]


# One client a process, store and options; a forked child must not share the parent's sockets, hence the pid.
_lock = threading.Lock()


def store_for(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> Store:
    """The store that holds the (normalised) ``uri``."""
    with _lock:
        return _store(uri[:5] if is_remote(uri) else "", options, os.getpid(), _environment())


def _environment() -> tuple[str | None, ...]:
    """What a client takes from the environment when it is made; another value needs another client."""
    return tuple(value for name, value in sorted(os.environ.items()) if name.startswith("AWS_"))


def remote_store_for(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> RemoteStore:
    """The object store that holds the (normalised, remote) ``uri``."""
    return cast("RemoteStore", store_for(uri, options))


@functools.lru_cache(maxsize=8)
def _store(scheme: str, options: StorageOptions, pid: int, environment: tuple[str | None, ...]) -> Store:
    del pid, environment  # they are in the key of the cache only
    if scheme == "s3://":
        from pipeline.corpus._s3 import S3Store

        return S3Store(options)
    if scheme == "gs://":
        from pipeline.corpus._gcs import GcsStore

        return GcsStore(options)
    from pipeline.corpus._local import LocalStore

    return LocalStore()


def list_objects(
    src: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS, include: str | None = None
) -> Iterator[ObjectInfo]:
    """Every object under ``src``, page by page; ``src`` may also name one object.

    Skipped: names that begin with ``.`` or ``_`` in any part of the path below ``src``, and the empty objects
    named ``…/`` with which some tools mark folders.

    Args:
        include: a glob on the path relative to ``src`` (``*`` also crosses ``/``; case counts), or on the
            file's name where the glob holds no ``/``.

    Raises:
        UserError: ``src`` does not exist, access is denied, or the store cannot be reached.
    """
    root = normalise_uri(src)
    for info in store_for(root, options).walk(root):
        if not is_hidden(info.path) and (include is None or matches(info.path, include)):
            yield info


def is_hidden(path: str) -> bool:
    """Whether a part of ``path`` begins with ``.`` or ``_``."""
    return path.startswith((".", "_")) or "/." in path or "/_" in path


def matches(path: str, glob: str) -> bool:
    """Whether ``path`` (or, for a glob without ``/``, its last part) matches ``glob``."""
    return fnmatch.fnmatchcase(path if "/" in glob else path.rpartition("/")[2], glob)


def stat(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> ObjectInfo | None:
    """The object at ``uri``, or None where there is none (a folder is no object)."""
    root = normalise_uri(uri)
    return store_for(root, options).stat(root)


def exists(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> bool:
    """Whether there is an object at ``uri``, or anything below it (empty folders do not count)."""
    root = normalise_uri(uri)
    store = store_for(root, options)
    return store.stat(root) is not None or store.holds_any(root)


def list_names(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> list[str]:
    """Names directly under ``uri``, files and folders alike, sorted, hidden ones too; empty if missing."""
    root = normalise_uri(uri)
    return store_for(root, options).names(root)


def list_folders(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> list[str]:
    """Names of the folders directly under ``uri``, sorted, hidden ones too."""
    root = normalise_uri(uri)
    return store_for(root, options).folders(root)


def read_bytes(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is none.
    """
    root = normalise_uri(uri)
    return store_for(root, options).read(root)


def read_version(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> tuple[bytes, str]:
    """The whole object, and the etag of just this content.

    Raises:
        FileNotFoundError: there is none.
    """
    root = normalise_uri(uri)
    return store_for(root, options).read_version(root)


def write_bytes(uri: str | os.PathLike[str], data: bytes, options: StorageOptions = DEFAULT_OPTIONS) -> None:
    """Write or replace an object; a reader sees the old or the new content, never a part."""
    root = normalise_uri(uri)
    store_for(root, options).write(root, data)


def put_if_absent(
    uri: str | os.PathLike[str], data: bytes, options: StorageOptions = DEFAULT_OPTIONS
) -> bool:
    """Write an object only where there is none; of any number of callers at once exactly one gets True.

    On ``gs://`` this is a check followed by a write, which two callers within the same instant can both pass.
    """
    root = normalise_uri(uri)
    return store_for(root, options).put_if_absent(root, data)


def put_if_unchanged(
    uri: str | os.PathLike[str], data: bytes, etag: str, options: StorageOptions = DEFAULT_OPTIONS
) -> bool:
    """Replace an object only where its content is still that of ``etag``; returns whether it was.

    On local disks and ``gs://`` this is a check followed by a write, which two callers within the same
    instant can both pass.
    """
    root = normalise_uri(uri)
    return store_for(root, options).put_if_unchanged(root, data, etag)


def delete(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> None:
    """Delete an object; no error where there is none."""
    root = normalise_uri(uri)
    store_for(root, options).delete(root)


def delete_tree(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> None:
    """Delete everything below ``uri`` and ``uri`` itself; no error where there is nothing."""
    root = normalise_uri(uri)
    store_for(root, options).delete_tree(root)


def upload_file(
    local: str | os.PathLike[str], uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS
) -> None:
    """Copy a local file of any size to ``uri``, whole or not at all."""
    root = normalise_uri(uri)
    store_for(root, options).upload(Path(local), root)


def download_file(
    uri: str | os.PathLike[str], local: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS
) -> None:
    """Copy the object at ``uri`` to a local file.

    Raises:
        FileNotFoundError: there is none.
    """
    root = normalise_uri(uri)
    Path(local).parent.mkdir(parents=True, exist_ok=True)
    store_for(root, options).download(root, Path(local))


def upload_dir(
    local: str | os.PathLike[str], uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS
) -> None:
    """Copy every file below a local folder to below ``uri`` (each whole or not at all, in sorted order)."""
    base = Path(local)
    for file in sorted(p for p in base.rglob("*") if p.is_file()):
        upload_file(file, join(uri, file.relative_to(base).as_posix()), options)


def download_dir(
    uri: str | os.PathLike[str], local: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS
) -> None:
    """Copy everything below ``uri``, hidden names too, into a local folder.

    Raises:
        UserError: there is nothing below ``uri``.
    """
    root, base = normalise_uri(uri), Path(local).resolve()
    for info in store_for(root, options).walk(root):
        target = (base / info.path).resolve()
        if base not in target.parents:  # a key such as `../x` must not write outside the folder
            raise UserError(f"{info.uri} would be written outside {base}: rename the object")
        download_file(info.uri, target, options)


def filesystem(
    uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS
) -> tuple[FileSystem, str]:
    """The PyArrow filesystem that holds ``uri``, and the path of ``uri`` in it.

    Unlike ``pyarrow.fs.FileSystem.from_uri`` it takes keys with ``%``, ``#`` or ``?`` literally.
    """
    root = normalise_uri(uri)
    return store_for(root, options).filesystem(root)


def split_bucket(uri: str) -> tuple[str, str]:
    """``(bucket, key)`` of a normalised remote URI; the key of a bare bucket is empty."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key


def __getattr__(name: str) -> Any:
    # `from pipeline.corpus.storage import ObjectOpener` works, while the two files stay apart.
    if name in ("ObjectOpener", "RangedReader"):
        from pipeline.corpus import opener

        return getattr(opener, name)
    raise AttributeError(name)

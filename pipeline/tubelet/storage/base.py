"""What every store is: its options, the objects it lists, the operations it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

from tubelet.config import Option, Settings

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


class StorageOptions(Settings):
    """How to reach a store, and how its outputs are shared."""

    anonymous: Annotated[bool, Option()] = False
    """Read public buckets without credentials."""

    single_writer: Annotated[bool, Option()] = False
    """Write to a store without conditional puts: you see to it that one job at a time writes an output."""

    break_lock: Annotated[bool, Option()] = False
    """Take an output over from the job that holds it: only if you know that it is gone."""

    def for_writing(self) -> StorageOptions:
        """Of an output beside public videos: those are read without credentials, it is written with them."""
        return StorageOptions(single_writer=self.single_writer)


DEFAULT_OPTIONS = StorageOptions()


@dataclass(frozen=True)
class Conditions:
    """Which conditional puts a store honours.

    Attributes:
        absent: a put only where there is no such object; without it there can be no lock.
        unchanged: a put only where the object is the one whose etag is given; without it, a check precedes
            the write.
    """

    absent: bool = True
    unchanged: bool = True


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


class Store(Protocol):
    """What each kind of store can do; ``uri`` is always a normalised one of its own kind."""

    def stat(self, uri: str) -> ObjectInfo | None:
        """The object, or None."""
        ...

    def walk(self, uri: str) -> Iterator[ObjectInfo]:
        """Every object below ``uri``, or the one at it."""
        ...

    def holds_any(self, uri: str) -> bool:
        """Whether there is an object below ``uri``."""
        ...

    def names(self, uri: str) -> list[str]:
        """Names directly under ``uri``, sorted."""
        ...

    def folders(self, uri: str) -> list[str]:
        """Names of the folders directly under ``uri``, sorted."""
        ...

    def read(self, uri: str) -> bytes:
        """The whole object."""
        ...

    def read_version(self, uri: str) -> tuple[bytes, str]:
        """The whole object, and its etag."""
        ...

    def write(self, uri: str, data: bytes) -> None:
        """Write or replace the object in one atomic step."""
        ...

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write where there is no such object; returns whether it was."""
        ...

    def put_if_unchanged(self, uri: str, data: bytes, etag: str) -> bool:
        """Replace where the object is still that of ``etag``; returns whether it was."""
        ...

    def check_conditions(self, uri: str) -> Conditions:
        """Ask which conditional puts are honoured below ``uri``."""
        ...

    def upload(self, local: Path, uri: str) -> None:
        """Copy a local file to ``uri``."""
        ...

    def download(self, uri: str, local: Path) -> None:
        """Copy the object to a local file."""
        ...

    def copy(self, uri: str, target: str) -> None:
        """Copy the object to another place of the store, without its bytes passing through here."""
        ...

    def delete(self, uri: str) -> None:
        """Delete the object; no error where there is none."""
        ...

    def delete_tree(self, uri: str) -> None:
        """Delete everything below ``uri``, and ``uri``."""
        ...

    def signed_url(self, uri: str, lifetime_s: int) -> str | None:
        """A link to read the object by; None: the store makes none."""
        ...

    def filesystem(self, uri: str) -> tuple[FileSystem, str]:
        """PyArrow's filesystem, and the path of ``uri`` in it."""
        ...


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

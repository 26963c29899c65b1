"""Operations on objects of any store, by URI or plain path."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tubelet.config import UserError
from tubelet.storage.base import DEFAULT_OPTIONS, Conditions, ObjectInfo, StorageOptions
from tubelet.storage.registry import store_for
from tubelet.storage.uris import join, normalise_uri

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


# What other tools put beside data, in the same folder: Hadoop's and Databricks' commits, Parquet's summaries.
_MARKER = re.compile(r"_(success|failure|metadata|common_metadata|(committed|started)_\w+)", re.IGNORECASE)


def list_objects(
    src: str | os.PathLike[str],
    options: StorageOptions = DEFAULT_OPTIONS,
    include: str | None = None,
    *,
    on_skipped: Callable[[ObjectInfo], None] = lambda info: None,
) -> Iterator[ObjectInfo]:
    """Every object under ``src``, page by page; ``src`` may also name one object.

    Skipped: what :func:`is_hidden` names, and what ``include`` does not match. The empty objects named
    ``…/`` with which some tools mark folders are none.

    Args:
        src: a folder, a prefix or a bucket.
        options: how to reach the store.
        include: a glob on the path relative to ``src`` (``*`` also crosses ``/``; case counts), or on the
            file's name where the glob holds no ``/``.
        on_skipped: called with each object that is skipped.

    Yields:
        The objects, in the order of the store.

    Raises:
        UserError: ``src`` does not exist, access is denied, or the store cannot be reached.
    """
    root = normalise_uri(src)
    for info in store_for(root, options).walk(root):
        if is_hidden(info.path) or (include is not None and not matches(info.path, include)):
            on_skipped(info)
        else:
            yield info


def is_hidden(path: str) -> bool:
    """Whether an object is none of a corpus by its path relative to it.

    That is what lies in a folder whose name begins with ``.`` or ``_`` (``.`` and ``..``, which keys of a
    store may hold, are no such names), what begins with ``.`` itself, and markers such as ``_SUCCESS``. A
    name like ``_vzHWdv5F1U.mp4`` is a YouTube id.
    """
    *folders, name = path.split("/")
    if name.startswith(".") or _MARKER.fullmatch(name):
        return True
    return any(folder.startswith((".", "_")) and folder not in (".", "..") for folder in folders)


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


def walk(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> Iterator[ObjectInfo]:
    """Every object below ``uri``, hidden ones too."""
    root = normalise_uri(uri)
    return store_for(root, options).walk(root)


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
    """Write an object only where there is none; of any number of callers at once exactly one gets True."""
    root = normalise_uri(uri)
    return store_for(root, options).put_if_absent(root, data)


def put_if_unchanged(
    uri: str | os.PathLike[str], data: bytes, etag: str, options: StorageOptions = DEFAULT_OPTIONS
) -> bool:
    """Replace an object only where its content is still that of ``etag``; returns whether it was.

    ``etag`` is what :func:`read_version` gave. On local disks this is a check followed by a write, which two
    callers within the same instant can both pass.
    """
    root = normalise_uri(uri)
    return store_for(root, options).put_if_unchanged(root, data, etag)


def check_conditions(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> Conditions:
    """Ask the store which conditional puts it honours below ``uri``: some ignore them, some refuse them.

    It takes a probe of an object, which is deleted again; ask once per output. Later puts go by the answer.
    """
    root = normalise_uri(uri)
    return store_for(root, options).check_conditions(root)


def copy(
    uri: str | os.PathLike[str], target: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS
) -> None:
    """Copy an object within its store, whole or not at all.

    Raises:
        FileNotFoundError: there is none.
    """
    root = normalise_uri(uri)
    store_for(root, options).copy(root, normalise_uri(target))


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


def signed_url(
    uri: str | os.PathLike[str], lifetime_s: int, options: StorageOptions = DEFAULT_OPTIONS
) -> str | None:
    """A link that lets whoever has it read the object for so long; None where the store makes none.

    No request is made: that the object is there, and may be read, is not checked.
    """
    root = normalise_uri(uri)
    return store_for(root, options).signed_url(root, lifetime_s)


def filesystem(
    uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS
) -> tuple[FileSystem, str]:
    """The PyArrow filesystem that holds ``uri``, and the path of ``uri`` in it.

    Unlike ``pyarrow.fs.FileSystem.from_uri`` it takes keys with ``%``, ``#`` or ``?`` literally.
    """
    root = normalise_uri(uri)
    return store_for(root, options).filesystem(root)

"""The folder of one predictions output: its files, read and written with patience, and what they are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from tubelet import storage
from tubelet._version import SCHEMA_KEY, SCHEMA_VERSION
from tubelet.config import UserError
from tubelet.storage import StorageOptions, with_retries
from tubelet.storage.damage import damage_named
from tubelet.storage.pinned import ParquetSource, open_parts, retry_if_changed

T = TypeVar("T")

DESCRIPTION = "_output.json"
VERSIONS = "_versions"
_MOVING_TO = "moving_to"


class MadePage(NamedTuple):
    """A page of predictions.

    Attributes:
        alone: a page that is one file: itself, or, where its pictures lie beside it, one of its first rows.
    """

    uri: str
    alone: str


MakePage = Callable[[str, str], MadePage]
"""Makes a page of the predictions at one URI, at another."""


def parquet_bytes(table: pa.Table) -> bytes:
    """``table`` as a Parquet file of this version of the schema."""
    metadata = {**(table.schema.metadata or {}), SCHEMA_KEY.encode(): str(SCHEMA_VERSION)}
    table = table.replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


class OutputFiles:
    """Files directly under one output URI.

    Args:
        check_owner: raises when this job is no longer the output's owner.
        job: that makes it, for messages.
    """

    def __init__(
        self,
        uri: str,
        options: StorageOptions | None = None,
        check_owner: Callable[[], None] = lambda: None,
        job: str = "tubelet label",
    ) -> None:
        self.job = job
        self.uri = storage.normalise_uri(uri)
        self.options = options or StorageOptions()
        self.check_owner = check_owner

    def path(self, name: str) -> str:
        """URI of a file of this output."""
        return storage.join(self.uri, name)

    def names(self) -> list[str]:
        """Names directly under the output."""
        return with_retries(lambda: storage.list_names(self.uri, self.options))

    def read(self, name: str) -> bytes:
        """A whole file. Raises ``FileNotFoundError``."""
        return with_retries(lambda: storage.read_bytes(self.path(name), self.options))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file in one atomic step."""
        with_retries(lambda: storage.write_bytes(self.path(name), data, self.options))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file in one atomic step unless the name is taken."""
        self.check_owner()
        return with_retries(lambda: storage.put_if_absent(self.path(name), data, self.options))

    def rewrite(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Overwrite a file by ``change`` of its content, in one atomic step, as the output's owner.

        Where another writer changed it meanwhile, ``change`` is made to what that one wrote.
        """
        path = self.path(name)
        while True:
            data, etag = with_retries(lambda: storage.read_version(path, self.options))
            with _damage_named(path, self.job):
                changed = change(data)
            self.check_owner()
            if with_retries(partial(storage.put_if_unchanged, path, changed, etag, self.options)):
                return

    def move(self, name: str, folder: str) -> None:
        """Move a file below ``folder``; a crash in between leaves it in both, moving again mends it."""
        self.write(f"{folder}/{name}", self.read(name))
        with_retries(lambda: storage.delete(self.path(name), self.options))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Some columns of a Parquet file, all of one version of it; those that it has not are left out.

        Raises:
            UserError: the file is damaged; the message names it and says what to do.
        """
        return self._read_part(
            name, lambda part: part.read([n for n in columns or part.schema.names if n in part.schema.names])
        )

    def read_schema(self, name: str) -> pa.Schema:
        """The schema of a Parquet file, its metadata included.

        Raises:
            UserError: the file is damaged.
        """
        return self._read_part(name, lambda part: part.schema)

    def open(self, name: str) -> ParquetSource:
        """A Parquet file, of which one version is read.

        Raises:
            UserError: the file is damaged.
            ObjectChangedError: it was replaced; also from what reads it.
        """
        return self._read_part(name, lambda part: part)

    def _read_part(self, name: str, read: Callable[[ParquetSource], T]) -> T:
        """What ``read`` takes from the part ``name``, of whichever version is found first to the end."""
        path = self.path(name)

        def attempt() -> T:
            found = storage.stat(path, self.options)
            if found is None:
                raise FileNotFoundError(f"{path} does not exist")
            with _damage_named(path, self.job):
                return read(open_parts([found], self.options))

        return retry_if_changed(lambda: with_retries(attempt))


def _damage_named(path: str, job: str) -> AbstractContextManager[None]:
    return damage_named(
        lambda reason: (
            f"{path} cannot be read, it was cut off or damaged ({reason}): delete it and run the"
            f" same `{job}` again, which makes its rows anew"
        )
    )


def check_or_init_output(
    files: OutputFiles, description: Mapping[str, Any], *, new_version: bool | None = False
) -> None:
    """Make ``files`` the output of what ``description`` names, so that readers see one model's rows.

    Args:
        new_version: rows of another description are moved out of the way; None: no flag would do that.

    Raises:
        UserError: as :func:`check_output`.
    """
    found = check_output(files, description, new_version=new_version)
    if found == "same":
        return
    if found == "other":
        parts = [name for name in files.names() if name.endswith(".parquet") and not name.startswith("_")]
        _set_aside(files, json.loads(files.read(DESCRIPTION)), parts)
    files.write(DESCRIPTION, _encode(description))


def check_output(
    files: OutputFiles, description: Mapping[str, Any], *, new_version: bool | None = False
) -> Literal["new", "same", "other"]:
    """What ``files`` is to a job of this ``description``; changes nothing.

    Returns:
        ``other``: rows of another description, which ``new_version`` moves out of the way.

    Raises:
        UserError: it holds rows of another model, sampling or shape of rows, and ``new_version`` is not
            set; or files that no such job wrote.
    """
    names = files.names()
    if DESCRIPTION not in names:
        if any(name.endswith(".parquet") and not name.startswith("_") for name in names):
            raise UserError(
                f"{files.uri} holds Parquet files that no `{files.job}` wrote: choose another --out"
            )
        return "new"
    former = json.loads(files.read(DESCRIPTION))
    if _MOVING_TO in former and not new_version:
        raise UserError(f"{files.uri} was left while former rows were moved: set --new-version to go on")
    differing = [name for name in description if former.get(name) != description[name]]
    if not differing and _MOVING_TO not in former:
        return "same"
    if not new_version:
        changes = ", ".join(f"{n} {former.get(n)!r} is now {description[n]!r}" for n in differing)
        flag = f", or set --new-version to move the former rows under {VERSIONS}/"
        raise UserError(
            f"{files.uri} holds rows made otherwise: {changes}.\n"
            f"Choose another --out{'' if new_version is None else flag}"
        )
    return "other"


def _set_aside(files: OutputFiles, former: Mapping[str, Any], parts: list[str]) -> None:
    """Move the former version's parts to where the description says, so that a crash is taken up again."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = former.get(_MOVING_TO) or f"{VERSIONS}/{moment}-{uuid4().hex[:6]}"
    files.write(DESCRIPTION, _encode({**former, _MOVING_TO: folder}))
    files.write(f"{folder}/{DESCRIPTION}", _encode(former))
    for name in parts:
        files.move(name, folder)


def _encode(description: Mapping[str, Any]) -> bytes:
    return json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False).encode()

"""The folder of one predictions output: its files, read and written with patience, and what they are."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.config import UserError
from tubelet.storage import StorageOptions

T = TypeVar("T")

DESCRIPTION = "_output.json"
VERSIONS = "_versions"
_MOVING_TO = "moving_to"

# A store that is away for longer than this ends the job; nothing is lost, and running it again resumes.
PATIENCE_S = 600.0


def parquet_bytes(table: pa.Table) -> bytes:
    """``table`` as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def patiently(action: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """Run ``action`` again, with growing pauses, while the store is away or overloaded."""
    deadline_s = time.monotonic() + patience_s
    pause_s = 0.5
    while True:
        try:
            return action()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + pause_s > deadline_s:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 15.0)


def is_transient(error: BaseException | None) -> bool:
    """Whether the store may answer later: it could not be reached, or said 5xx or "slow down"."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return bool(status >= 500 or status == 429)
        if type(error).__module__.startswith(("botocore", "urllib3")):
            return "credential" not in type(error).__name__.lower()
        if isinstance(error, OSError) and error.errno is None and not error.__cause__:
            return not isinstance(error, (FileNotFoundError, PermissionError))
        error = error.__cause__
    return False


class OutputFiles:
    """Files directly under one output URI.

    Args:
        check_owner: raises when this job is no longer the output's owner.
    """

    def __init__(
        self,
        uri: str,
        options: StorageOptions | None = None,
        check_owner: Callable[[], None] = lambda: None,
    ) -> None:
        self.uri = storage.normalise_uri(uri)
        self.options = options or StorageOptions()
        self.check_owner = check_owner

    def path(self, name: str) -> str:
        """URI of a file of this output."""
        return storage.join(self.uri, name)

    def names(self) -> list[str]:
        """Names directly under the output."""
        return patiently(lambda: storage.list_names(self.uri, self.options))

    def read(self, name: str) -> bytes:
        """A whole file. Raises ``FileNotFoundError``."""
        return patiently(lambda: storage.read_bytes(self.path(name), self.options))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file in one atomic step."""
        patiently(lambda: storage.write_bytes(self.path(name), data, self.options))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file in one atomic step unless the name is taken."""
        self.check_owner()
        return patiently(lambda: storage.put_if_absent(self.path(name), data, self.options))

    def rewrite(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Overwrite a file by ``change`` of its content, in one atomic step, as the output's owner.

        Where another writer changed it meanwhile, ``change`` is made to what that one wrote.
        """
        path = self.path(name)
        while True:
            data, etag = patiently(lambda: storage.read_version(path, self.options))
            changed = change(data)
            self.check_owner()
            if patiently(partial(storage.put_if_unchanged, path, changed, etag, self.options)):
                return

    def move(self, name: str, folder: str) -> None:
        """Move a file below ``folder``; a crash in between leaves it in both, moving again mends it."""
        self.write(f"{folder}/{name}", self.read(name))
        patiently(lambda: storage.delete(self.path(name), self.options))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Some columns of a Parquet file."""
        filesystem, path = storage.filesystem(self.path(name), self.options)
        return patiently(
            lambda: pq.read_table(path, columns=columns, filesystem=filesystem, partitioning=None)
        )

    def read_schema(self, name: str) -> pa.Schema:
        """The schema of a Parquet file, its metadata included."""
        filesystem, path = storage.filesystem(self.path(name), self.options)
        return patiently(lambda: pq.read_schema(path, filesystem=filesystem))


def claim(files: OutputFiles, description: Mapping[str, Any], *, new_version: bool = False) -> None:
    """Make ``files`` the output of what ``description`` names, so that readers see one model's rows.

    Raises:
        UserError: it holds rows of another model, sampling or shape of rows, and ``new_version`` is not
            set; or files that no labelling job wrote.
    """
    names = files.names()
    parts = [name for name in names if name.endswith(".parquet") and not name.startswith("_")]
    if DESCRIPTION not in names:
        if parts:
            raise UserError(
                f"{files.uri} holds Parquet files that no labelling job wrote: choose another --out"
            )
        files.write(DESCRIPTION, _encode(description))
        return
    former = json.loads(files.read(DESCRIPTION))
    if _MOVING_TO in former and not new_version:
        raise UserError(f"{files.uri} was left while former rows were moved: set --new-version to go on")
    differing = [name for name in description if former.get(name) != description[name]]
    if not differing and _MOVING_TO not in former:
        return
    if not new_version:
        changes = ", ".join(f"{n} {former.get(n)!r} is now {description[n]!r}" for n in differing)
        raise UserError(
            f"{files.uri} holds predictions made otherwise: {changes}.\n"
            f"Choose another --out, or set --new-version to move the former rows under {VERSIONS}/"
        )
    _set_aside(files, former, parts)
    files.write(DESCRIPTION, _encode(description))


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

"""Writes a new version of a manifest: parts as they are done, all published at once.

Hours of looking into videos come before it, so a store that is away for a while is waited for.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tubelet import storage
from tubelet._version import SCHEMA_KEY, SCHEMA_VERSION
from tubelet.config import UserError
from tubelet.corpus.versions import (
    LEGACY,
    Part,
    Record,
    Version,
    earlier_folder,
    is_one_file,
    is_part_name,
    part_name,
    staging_folder,
)
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions, with_retries

METADATA_KEY = b"tubelet"
# Rows of a part, and bytes, whichever is reached first: what one reader opens at once.
PART_ROWS = 200_000
_PART_BYTES = 256 << 20
# A row group is what stands in memory while it is written or read.
_GROUP_ROWS = 16_384
_GROUP_BYTES = 32 << 20


@contextmanager
def manifest_writer(
    uri: str,
    schema: pa.Schema,
    *,
    made_from: Mapping[str, Any] | None = None,
    options: StorageOptions = DEFAULT_OPTIONS,
    part_rows: int = PART_ROWS,
) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends tables; the manifest appears at ``uri`` when the block ends without an error.

    Args:
        uri: the manifest.
        schema: of all tables.
        made_from: what an update needs to know again; kept in the files' metadata as JSON.
        options: how to reach the store.
        part_rows: most rows of one file, where the manifest is a folder.

    Raises:
        UserError: another job published one meanwhile.
    """
    root = storage.normalise_uri(uri)
    made = dict(made_from or {})
    texts = {METADATA_KEY: json.dumps(made), SCHEMA_KEY: str(SCHEMA_VERSION)}
    # Before the rows are made: what is published meanwhile by somebody else may not be among them.
    record = Record.read(root, options)
    with tempfile.TemporaryDirectory(prefix="tubelet-") as folder:
        parts = _Parts(root, schema.with_metadata(texts), Path(folder), part_rows, options)
        yield parts.add
        _publish(root, parts, json.loads(json.dumps(made)), record, options)


class _Parts:
    """Parquet files: written on local disk, staged beside the manifest when they are full."""

    def __init__(
        self, root: str, schema: pa.Schema, folder: Path, part_rows: int, options: StorageOptions
    ) -> None:
        self._schema, self._folder, self._options = schema, folder, options
        self._staging = staging_folder(root)
        self._part_rows = None if is_one_file(root) else part_rows
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._written = 0
        self.done: list[Part] = []

    def add(self, table: pa.Table) -> None:
        """More rows."""
        table = table.cast(self._schema).combine_chunks()
        while table.num_rows:
            room = _GROUP_ROWS - self._rows
            if self._part_rows is not None:
                room = min(room, self._part_rows - self._written - self._rows)
            head, table = table.slice(0, room), table.slice(room)
            self._waiting.append(head)
            self._rows += head.num_rows
            self._bytes += head.nbytes
            if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES or head.num_rows == room:
                self._flush()

    def close(self) -> list[Part]:
        """No more rows; the parts, of which there is one at least."""
        self._flush()
        if self._writer is not None or not self.done:
            self._open()
            self._stage()
        return self.done

    def staged(self, part: Part) -> str:
        """Where a part lies."""
        return storage.join(self._staging, part.name)

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._folder / "part.parquet", self._schema, compression="zstd")
        return self._writer

    def _flush(self) -> None:
        if self._rows:
            self._open().write_table(pa.concat_tables(self._waiting), row_group_size=_GROUP_ROWS)
            self._written += self._rows
            self._waiting, self._rows, self._bytes = [], 0, 0
        if self._part_rows is not None and self._writer is not None:
            size_bytes = (self._folder / "part.parquet").stat().st_size
            if self._written >= self._part_rows or size_bytes >= _PART_BYTES:
                self._stage()

    def _stage(self) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        file = self._folder / "part.parquet"
        part = describe_part(file, len(self.done))
        with_retries(lambda: storage.upload_file(file, self.staged(part), self._options))
        file.unlink()
        self.done.append(part)
        self._written = 0


def describe_part(file: Path, number: int) -> Part:
    """Its name says the order and the content."""
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    return Part(part_name(number, digest), pq.read_metadata(file).num_rows, file.stat().st_size)


def _publish(
    root: str, parts: _Parts, made_from: dict[str, Any], before: Record, options: StorageOptions
) -> None:
    version = Version(tuple(parts.close()), made_from, datetime.now(UTC).isoformat(timespec="seconds"))
    # Each of these steps, done twice, does what it does once.
    record = with_retries(lambda: _with_legacy(root, before, options))
    if is_one_file(root):
        version = with_retries(lambda: _publish_file(root, parts, version, options))
    else:
        with_retries(lambda: _publish_folder(root, parts, version, record, options))
    if not _recorded(root, record.with_current(version), options):
        raise UserError(f"another job published {root} meanwhile: bring it up to date with --update")
    for part in version.parts:
        with_retries(partial(storage.delete, parts.staged(part), options))


def _recorded(root: str, record: Record, options: StorageOptions) -> bool:
    """Write the record; an answer that was lost on its way may have been a yes."""
    if with_retries(lambda: record.write(root, options)):
        return True
    return with_retries(lambda: Record.read(root, options)).current == record.current


def _publish_file(root: str, parts: _Parts, version: Version, options: StorageOptions) -> Version:
    (part,) = version.parts
    storage.copy(parts.staged(part), storage.join(earlier_folder(root), part.name), options)
    storage.copy(parts.staged(part), root, options)
    info = storage.stat(root, options)
    return Version(version.parts, version.made_from, version.at, info.etag if info else None)


def _publish_folder(
    root: str, parts: _Parts, version: Version, record: Record, options: StorageOptions
) -> None:
    """Swap the parts at the root; our own readers find either version's meanwhile, by their names."""
    names = {part.name for part in version.parts}
    # What a person has put there besides is none of ours.
    there = {name for name in storage.list_names(root, options) if name == LEGACY or is_part_name(name)}
    kept = set(storage.list_names(earlier_folder(root), options))
    known = {part.name for one in record.versions.values() for part in one.parts}
    for name in sorted((there & known) - names - kept):
        storage.copy(storage.join(root, name), storage.join(earlier_folder(root), name), options)
    for part in version.parts:
        if part.name not in there:
            storage.copy(parts.staged(part), storage.join(root, part.name), options)
    for name in sorted(there - names):
        storage.delete(storage.join(root, name), options)


def _with_legacy(root: str, record: Record, options: StorageOptions) -> Record:
    """What lies at the root without being the record's newest version becomes one, so that it stays readable.

    That is a manifest of an earlier tubelet, or one that another tool wrote since.
    """
    if is_one_file(root):
        info = storage.stat(root, options)
        known = record.versions.get(record.current or "")
        if info is None or (known is not None and known.etag == info.etag):
            return record
        version = _adopt(root, earlier_folder(root), options)
    else:
        if record.current is not None:
            return record
        file = storage.join(root, LEGACY)
        if storage.stat(file, options) is None:
            return record
        version = _adopt(file, earlier_folder(root), options)
    return record if version is None else record.with_current(version)


def _adopt(uri: str, target: str, options: StorageOptions) -> Version | None:
    """A file as a version; None where it is no Parquet file, so that nothing could read it again."""
    with tempfile.TemporaryDirectory(prefix="tubelet-") as folder:
        local = Path(folder) / "part.parquet"
        storage.download_file(uri, local, options)
        try:
            part = describe_part(local, 0)
        except pa.ArrowInvalid:
            return None
        made_from = parse_made_from((pq.read_schema(local).metadata or {}).get(METADATA_KEY))
        storage.copy(uri, storage.join(target, part.name), options)
    return Version((part,), made_from, datetime.now(UTC).isoformat(timespec="seconds"))


def parse_made_from(text: bytes | None) -> dict[str, Any]:
    """What the metadata of a Parquet file says it was made from; empty if another tool wrote it."""
    try:
        known = json.loads(text or b"{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}

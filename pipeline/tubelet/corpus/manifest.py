"""The manifest: one Parquet table that says what the corpus is.

A manifest named ``….parquet`` is that one file. Any other name is a folder of Parquet files, so that
``pandas.read_parquet``, Spark and PyArrow read the folder itself (DuckDB: ``'FOLDER/*.parquet'``). Either way
it is replaced whole: a reader here sees the old or the new one, and ``MANIFEST@VERSION`` is the version of
that name (see :mod:`tubelet.corpus.versions`). Others that read a folder may meet parts of two versions for
the seconds of a swap.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.digests import digests
from tubelet.corpus.publication import METADATA_KEY, manifest_writer, parse_made_from
from tubelet.corpus.versions import LEGACY, Record, find_parts, is_one_file, split_version
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, StorageOptions
from tubelet.storage.damage import damage_named
from tubelet.storage.pinned import ParquetSource, checked, open_parts, retry_if_changed
from tubelet.video import Status

STATUSES = tuple(Status)
# Readers need these; any other column of the schema is filled with nulls where a manifest lacks it.
REQUIRED = ("key", "uri", "path", "etag", "size", "status")

_BEFORE_LABELS = [
    ("key", pa.string()),
    ("segment", pa.int32()),
    ("uri", pa.string()),
    ("path", pa.string()),
    ("etag", pa.string()),
    ("size", pa.int64()),
    ("status", pa.string()),
    ("error_code", pa.string()),
    ("error", pa.string()),
    # Runs in a row that ended in a failure which is no verdict on the content; 0 for all else.
    ("attempts", pa.int32()),
]
# What opening a video tells.
FILE_FACTS = (
    ("codec", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("rotation", pa.int32()),
    ("fps", pa.float64()),
    ("vfr", pa.bool_()),
    ("frames", pa.int64()),
    ("duration_s", pa.float64()),
    ("start_s", pa.float64()),
    ("keyframes_s", pa.list_(pa.float64())),
)
_AFTER_LABELS = [
    ("split", pa.string()),
    ("group", pa.string()),
    *FILE_FACTS,
    ("clip_start_s", pa.float64()),
    ("clip_end_s", pa.float64()),
    # When a person corrected the labels, in UTC; null: these are as they were found.
    ("corrected_at", pa.timestamp("us")),
    # In UTC, but without a zone: DuckDB's Python client cannot fetch zoned times unless pytz is there.
    ("indexed_at", pa.timestamp("us")),
]
# Rows of a manifest that are held at once where it is read in slices.
_SLICE_ROWS = 4096


def schema_with(labels: Mapping[str, bool] | None = None) -> pa.Schema:
    """The manifest's schema with label columns ``name -> is it a list (multi-label)``, ``label`` always."""
    kinds = {"label": False, **(labels or {})}
    middle = [(name, pa.list_(pa.string()) if many else pa.string()) for name, many in kinds.items()]
    return pa.schema([*_BEFORE_LABELS, *middle, *_AFTER_LABELS])


SCHEMA = schema_with()


def key_of(path: str) -> str:
    """32 hexadecimal digits: the BLAKE2b-128 hash of the path relative to SRC.

    The UTF-8 bytes are hashed as they are, not normalised: two objects never share a key. (Label files, which
    people write by hand, also match by normalised form: see ``tubelet.corpus.labels``.)
    """
    return hashlib.blake2b(path.encode("utf-8"), digest_size=16).hexdigest()


def manifest_exists(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> bool:
    """Whether tubelet published something at ``uri``, readable or not."""
    root = storage.normalise_uri(uri)
    file = root if is_one_file(root) else storage.join(root, LEGACY)
    return storage.stat(file, options) is not None or Record.read(root, options).current is not None


def is_manifest(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> bool:
    """Whether a manifest lies at ``uri``: a Parquet file, or a folder that has the columns of one.

    A damaged one that tubelet published is one as well, no folder of videos: who reads it says what is wrong.
    """
    root = storage.normalise_uri(uri)
    try:
        found = set(REQUIRED) <= set(_schema(root, options).names)
    except UserError:
        found = is_one_file(root) and storage.stat(root, options) is not None
    return found or (not is_one_file(root) and Record.read(root, options).current is not None)


def write_manifest(
    table: pa.Table,
    uri: str | os.PathLike[str],
    *,
    made_from: Mapping[str, Any] | None = None,
    options: StorageOptions = DEFAULT_OPTIONS,
) -> None:
    """Publish ``table`` as the manifest at ``uri``, replacing what was there, all at once.

    Raises:
        UserError: the table is no valid manifest (see :func:`check_manifest`).
    """
    check_manifest(table, str(uri))
    with manifest_writer(str(uri), table.schema, made_from=made_from, options=options) as write:
        write(table)


def read_manifest(
    uri: str | os.PathLike[str],
    columns: list[str] | None = None,
    *,
    without: Collection[str] = (),
    options: StorageOptions = DEFAULT_OPTIONS,
) -> pa.Table:
    """Read a manifest (any Parquet file or folder with its columns) with the types of the schema.

    Args:
        columns: read only these (the checks of the rows then see only these).
        without: do not read these.
        options: how to reach the store.

    Raises:
        UserError: there is none, it is not Parquet, it lacks columns, or its rows break the rules.
    """
    root = storage.normalise_uri(uri)
    table = retry_if_changed(lambda: _read(root, columns, without, options))
    if columns is None:
        columns = [name for name in table.column_names if name not in without]
    return table.select(columns)


def _read(
    root: str, columns: list[str] | None, without: Collection[str], options: StorageOptions
) -> pa.Table:
    source = _open(root, options)
    present = [name for name in _columns(source, root) if name in REQUIRED or name not in without]
    wanted = present if columns is None else [name for name in present if name in columns]
    with _damage_named(root):
        table = source.read(wanted)
    table = _conform(table, root)
    check_manifest(table, root)
    return table


def _damage_named(root: str) -> AbstractContextManager[None]:
    return damage_named(lambda reason: f"{root} is damaged: {reason}\nmake it again with `tubelet index`")


@dataclass(frozen=True)
class ManifestSlices:
    """One version of a manifest, a slice at a time, for those that need not hold it whole.

    Each iteration reads it from the start, and checks it as :func:`read_manifest` does.

    Raises:
        UserError: as :func:`read_manifest`; what concerns single rows with their slice, rows that stand
            there twice at the end.
        ObjectChangedError: it was replaced since it was opened (see ``pinned.retry_if_changed``).
    """

    root: str
    _source: ParquetSource
    _without: frozenset[str]

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        without: Collection[str] = (),
        options: StorageOptions = DEFAULT_OPTIONS,
    ) -> ManifestSlices:
        """The manifest at ``uri`` as it is now, ``without`` some columns."""
        root = storage.normalise_uri(uri)
        return cls(root, _open(root, options), frozenset(without))

    def __iter__(self) -> Iterator[pa.Table]:
        present = _columns(self._source, self.root)
        wanted = [name for name in present if name not in self._without]
        if len(wanted) < len(present):
            # Of a column that is left out damage goes unseen: a look at the first rows costs next to nothing.
            with _damage_named(self.root):
                next(iter(self._source.slices(present, _SLICE_ROWS)), None)
        seen: list[Any] = []
        slices = iter(self._source.slices(wanted, _SLICE_ROWS))
        while True:
            with _damage_named(self.root):
                rows = next(slices, None)
            if rows is None:
                break
            table = _conform(rows, self.root)
            check_manifest(table, self.root)
            seen.append(digests(table["key"], table["segment"]))
            yield table.select([name for name in table.column_names if name not in self._without])
        if seen and len(np.unique(np.concatenate(seen))) < sum(map(len, seen)):
            identity = [name for name in present if name in ("key", "segment")]
            _check_unique(self._source.read(identity), self.root)


def _columns(source: ParquetSource, root: str) -> list[str]:
    """All columns of the file or files; those of a manifest must be among them."""
    names = list(source.schema.names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise UserError(
            f"{root} is not a manifest: it lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}\n"
            f"make one with: tubelet index SRC --out {root}"
        )
    return names


def made_from(uri: str | os.PathLike[str], options: StorageOptions = DEFAULT_OPTIONS) -> dict[str, Any]:
    """What the manifest was made from (``src``, ``labels``, ``split``, …); empty if another tool wrote it."""
    metadata = _schema(storage.normalise_uri(uri), options).metadata or {}
    return parse_made_from(metadata.get(METADATA_KEY))


def _schema(root: str, options: StorageOptions) -> pa.Schema:
    return retry_if_changed(lambda: _open(root, options).schema)


def _open(uri: str, options: StorageOptions) -> ParquetSource:
    """All that reads a manifest begins here."""
    root, version = split_version(uri)
    place = root
    try:
        parts = _parts(root, version, options)
        if parts:
            return open_parts(parts, options)
        if not any(name.endswith(".parquet") for name in storage.list_names(root, options)):
            raise UserError(f"there is no manifest at {root}: make one with `tubelet index SRC --out {root}`")
        filesystem, path = storage.filesystem(root, options)
        from pyarrow.dataset import dataset as open_dataset  # imports pandas: every worker would pay for it

        dataset = open_dataset(path, filesystem=filesystem, format="parquet")
        return checked(ParquetSource.of_dataset(dataset), place)
    except (storage.ObjectChangedError, UserError):  # of the store, not of the file
        raise
    except (pa.ArrowInvalid, OSError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise UserError(f"{place} is not a readable Parquet file: {reason}") from error


def _parts(root: str, version: str | None, options: StorageOptions) -> list[ObjectInfo]:
    """The files of one version; none where another tool made the folder."""
    if version is None and is_one_file(root):
        found = storage.stat(root, options)
        return [] if found is None else [found]
    record = Record.read(root, options)
    name = version or record.current
    if name is not None:
        return find_parts(root, record, record.find(root, name), options)
    found = storage.stat(storage.join(root, LEGACY), options)
    return [] if found is None else [found]


def _conform(table: pa.Table, root: str) -> pa.Table:
    """Give known columns their types (other tools write other string types), add those that lack."""
    wanted = {field.name: field.type for field in SCHEMA if not is_label_column(field.name)}
    for name in table.column_names:
        column = table.column(name)
        kind = _label_type(column.type) if is_label_column(name) else wanted.get(name, column.type)
        if column.type != kind:
            try:
                table = table.set_column(table.column_names.index(name), name, column.cast(kind))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UserError(f"{root}: column {name} is {column.type}, not {kind}") from error
    if set(REQUIRED) <= set(table.column_names):
        for field in SCHEMA:
            if field.name not in table.column_names:
                zero = pa.scalar(0 if field.name in ("segment", "attempts") else None, field.type)
                table = table.append_column(field, pa.repeat(zero, table.num_rows))
    return _with_absolute_uris(table)


def _with_absolute_uris(table: pa.Table) -> pa.Table:
    """Relative paths, which another tool may have written, mean this process's working folder: say which."""
    if "uri" not in table.column_names:
        return table
    uris = table["uri"]
    absolute = pc.or_(pc.starts_with(uris, "/"), pc.match_substring(uris, "://"))
    if pc.all(absolute).as_py() is not False:
        return table
    named = [uri and storage.normalise_uri(uri) for uri in uris.to_pylist()]
    return table.set_column(table.column_names.index("uri"), "uri", pa.array(named, uris.type))


def _label_type(kind: pa.DataType) -> pa.DataType:
    many = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return pa.list_(pa.string()) if many else pa.string()


def check_manifest(table: pa.Table, name: str) -> None:
    """Check the rules of the rows, as far as the columns are there.

    Raises:
        UserError: an empty key or URI, a status that does not exist, two rows with one (key, segment), a clip
            that cannot be.
    """
    present = set(table.column_names)
    for column in ("key", "uri", "status"):
        if column in present and table.column(column).null_count:
            raise UserError(f"{name}: {table.column(column).null_count} rows have no {column}")
    if "status" in present:
        odd = set(pc.unique(table.column("status")).to_pylist()) - set(STATUSES)
        if odd:
            raise UserError(
                f"{name}: status is {sorted(odd)[0]!r} in some rows; it may be {', '.join(STATUSES)}"
            )
    if {"key", "segment"} <= present:
        _check_unique(table.select(["key", "segment"]), name)
    if {"key", "clip_start_s", "clip_end_s"} <= present:
        _check_clips(table, name)


def _check_clips(table: pa.Table, name: str) -> None:
    """A clip begins at 0 or later, and ends no earlier; NaN, as other tools write it, is none."""
    start = pc.fill_null(table["clip_start_s"], 0.0)
    start = pc.if_else(pc.is_nan(start), 0.0, start)
    backwards = pc.fill_null(pc.less(table["clip_end_s"], start), False)  # False of NaN, too
    odd = table["key"].filter(pc.or_(pc.or_(pc.less(start, 0.0), pc.is_inf(start)), backwards))
    if len(odd):
        raise UserError(
            f"{name}: the clips (clip_start_s, clip_end_s) of {len(odd)} rows cannot be, for example that of "
            f"the key {odd[0]}"
        )


def _check_unique(identity: pa.Table, name: str) -> None:
    found = digests(*(identity[column] for column in identity.column_names))
    if len(np.unique(found)) == len(found):  # of a million rows, a fifth of the memory that grouping takes
        return
    counts = identity.group_by(identity.column_names).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts.column("count_all"), 1))
    if twice.num_rows:
        raise UserError(f"{name}: {twice.num_rows} keys stand there twice, for example {twice['key'][0]}")


def is_label_column(name: str) -> bool:
    """Whether a column holds labels: ``label``, or ``label_<head>``."""
    return name == "label" or name.startswith("label_")


def label_columns(table: pa.Table | pa.Schema) -> list[str]:
    """The label columns, ``label`` first."""
    names = table.column_names if isinstance(table, pa.Table) else table.names
    return sorted((n for n in names if is_label_column(n)), key=lambda n: (n != "label", n))

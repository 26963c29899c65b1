"""Listings that exist already: an S3 Inventory report, or a table with ``uri, size, etag``."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.config import UserError
from tubelet.storage import ObjectInfo, StorageOptions

_SLICE_ROWS = 10_000
# As reports and people call them.
_NAMES = {"e_tag": "etag", "size_bytes": "size", "url": "uri", "object": "key", "name": "key"}
_GZIP = b"\x1f\x8b"
_ETAG = re.compile(r'"?[0-9a-f]{32}(-\d+)?"?')

Cells = Mapping[str, Any]


def read_inventory(uri: str, src: str, options: StorageOptions) -> Iterator[ObjectInfo]:
    """The objects below ``src`` that a listing names.

    Args:
        uri: the listing: the ``manifest.json`` of an S3 Inventory report, one of the report's own files, or a
            CSV or Parquet table of ``uri`` (or ``bucket`` and ``key``, or ``path`` relative to SRC), ``size``
            and ``etag``. CSV of URIs in this order needs no header.
        src: the corpus.
        options: how to reach the listing.

    Raises:
        UserError: it is missing or no listing, or names nothing below ``src``.
    """
    root = storage.normalise_uri(src).rstrip("/")
    count = below = 0
    for cells in _rows(storage.normalise_uri(uri), root, options):
        if str(cells.get("is_latest", "true")).casefold() == "false":
            continue
        if str(cells.get("is_delete_marker", "false")).casefold() == "true":
            continue
        count += 1
        name = _uri_of(cells, root)
        if name.startswith(f"{root}/") and not name.endswith("/"):
            below += 1
            etag, size = str(cells["etag"] or "").strip('"'), int(cells["size"] or 0)
            yield ObjectInfo(name, name[len(root) + 1 :], etag, size)
    if not below:
        raise UserError(f"none of the {count} objects that {uri} names lies under {src}: check both")


def _uri_of(cells: Cells, root: str) -> str:
    if cells.get("uri"):
        return storage.normalise_uri(str(cells["uri"]))
    if cells.get("key") and cells.get("bucket"):
        return f"s3://{cells['bucket']}/{cells['key']}"
    return storage.join(root, str(cells.get("path") or ""))


def _rows(uri: str, root: str, options: StorageOptions) -> Iterator[Cells]:
    data = _read(uri, options)
    if not data.lstrip().startswith(b"{"):
        columns = _without_header(data, root)
        rows = _table(uri, data, columns)
        yield from map(_decoded, rows) if columns and "key" in columns else rows
        return
    try:
        report = json.loads(data)
        columns = [name.strip() for name in report["fileSchema"].split(",")]
        bucket = report["destinationBucket"].rpartition(":")[2]
        keys = [one["key"] for one in report["files"]]
        kind = report["fileFormat"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{uri} is no manifest.json of an S3 Inventory report: {error!r} is missing"
        ) from error
    if kind not in ("CSV", "Parquet"):
        raise UserError(f"{uri} is an S3 Inventory report in {kind}: only CSV and Parquet are read")
    for key in keys:
        part = _beside(uri, bucket, key, options)
        rows = _table(part, _read(part, options), columns if kind == "CSV" else None)
        yield from map(_decoded, rows) if kind == "CSV" else rows


def _decoded(cells: Cells) -> Cells:
    """With the key as it is: in the CSV of a report it is written as in a URL."""
    return {**cells, "key": unquote_plus(str(cells["key"]))}


def _without_header(data: bytes, root: str) -> list[str] | None:
    """The columns of a CSV that does not name them, as far as its first line tells them.

    S3 Inventory writes bucket, key, perhaps three columns about versions, and then what was asked for.
    """
    if data.startswith(b"PAR1"):
        return None
    cells = next(csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")), [])
    if len(cells) == 3 and "://" in cells[0] and cells[1].isdecimal():
        return ["uri", "size", "etag"]
    if len(cells) < 4 or cells[0] != root.removeprefix("s3://").partition("/")[0]:
        return None
    versions = {cell.casefold() for cell in cells[3:5]} <= {"true", "false"}
    columns = ["bucket", "key", *(("version_id", "is_latest", "is_delete_marker") if versions else ())]
    for number, cell in enumerate(cells[len(columns) :], len(columns)):
        known = "size" if cell.isdecimal() else "etag" if _ETAG.fullmatch(cell) else ""
        columns.append(known if known and known not in columns else f"column {number}")
    return columns


def _beside(uri: str, bucket: str, key: str, options: StorageOptions) -> str:
    """A file of a report: where the report says, or in ``data/`` beside a copy of it."""
    folder = storage.parent(uri)
    copies = [storage.join(folder, "data", storage.name_of(key)), storage.join(folder, storage.name_of(key))]
    found = next((name for name in copies if storage.exists(name, options)), None)
    return found or f"s3://{bucket}/{key}"


def _read(uri: str, options: StorageOptions) -> bytes:
    try:
        data = storage.read_bytes(uri, options)
    except FileNotFoundError as error:
        raise UserError(f"there is no listing {uri}: check --listing") from error
    return gzip.decompress(data) if data.startswith(_GZIP) else data


def _table(uri: str, data: bytes, columns: list[str] | None) -> Iterator[Cells]:
    if data.startswith(b"PAR1"):
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{uri} is not a readable Parquet file: {error}") from error
        names = _known(uri, list(file.schema_arrow.names))
        for batch in file.iter_batches(_SLICE_ROWS, columns=list(names)):
            for row in batch.to_pylist():
                yield {names[name]: cell for name, cell in row.items()}
        return
    lines = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""))
    header = columns if columns is not None else next(lines, [])
    names = _known(uri, header)
    for cells in lines:
        if cells:
            yield {names[name]: cell for name, cell in zip(header, cells, strict=False) if name in names}


def _known(uri: str, columns: list[str]) -> dict[str, str]:
    """The columns that have a meaning, and how they are called here."""
    names = {}
    for column in columns:
        # ``IsLatest`` and ``ETag`` in the reports of CSV, ``is_latest`` and ``e_tag`` in those of Parquet.
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.strip()).casefold()
        names[column] = _NAMES.get(plain, plain)
    known = set(names.values())
    named = "uri" in known or {"bucket", "key"} <= known or "path" in known
    if not named or not {"size", "etag"} <= known:
        raise UserError(
            f"{uri} is no listing: its columns are {', '.join(map(repr, columns[:8])) or 'none'}\n"
            "it needs uri (or bucket and key), size and etag; of S3 Inventory, name the manifest.json"
        )
    wanted = {"uri", "bucket", "key", "path", "size", "etag", "is_latest", "is_delete_marker"}
    return {column: name for column, name in names.items() if name in wanted}

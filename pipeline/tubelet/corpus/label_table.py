"""Read a label file: CSV or Parquet with a header; what is something else is named, with what to do."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from typing import Any

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.manifest import is_label_column
from tubelet.storage import StorageOptions

# Other names of the column `path`, as Hugging Face's folders and other lists of videos have them.
_PATH_COLUMNS = ("file_name", "filename", "video", "video_path")
_KNOWN_COLUMNS = ("path", "uri", "label", "split", "group")
_VIDEO_NAME = re.compile(r"\S.*\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|ts|wmv|flv|3gp|ogv|gif)", re.IGNORECASE)
# Binary formats that people take for tables, by their first bytes.
_MAGIC = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive: export the table"),
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it"),
    (b"\xff\xfe", "UTF-16, not UTF-8: save it as UTF-8 CSV"),
    (b"\xfe\xff", "UTF-16, not UTF-8: save it as UTF-8 CSV"),
    (b"SQLite format 3", "an SQLite database: export the table"),
    (b"ARROW1", "an Arrow file: write it as Parquet"),
    (b"\x80\x04", "a pickle, which is never opened: write the table as CSV"),
    (b"\x80\x05", "a pickle, which is never opened: write the table as CSV"),
)


@dataclass(frozen=True)
class LabelTable:
    """The cells of a label file.

    Attributes:
        columns: names of the columns; those that have a meaning here are spelled as it is documented.
        rows: where each row stands in the file (for messages), and its cells.
        many: columns that are lists already.
    """

    columns: list[str]
    rows: list[tuple[str, dict[str, Any]]]
    many: set[str]


def read_label_table(uri: str, options: StorageOptions) -> LabelTable:
    """The label file at ``uri``.

    Raises:
        UserError: the file is missing, or is no table with a header; names the format where it is known.
    """
    try:
        data = storage.read_bytes(uri, options)
    except FileNotFoundError as error:
        raise UserError(f"there is no label file {uri}: check --labels (or give --labels folders)") from error
    except OSError as error:
        raise UserError(f"cannot read the label file {uri}: {error.strerror or error}") from error
    return _read_parquet(uri, data) if data[:4] == b"PAR1" else _read_csv(uri, data)


def _read_parquet(uri: str, data: bytes) -> LabelTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    table = table.rename_columns(_spelled(table.column_names))
    _check_unique(uri, table.column_names)
    nested = {n for n in table.column_names if pa.types.is_nested(table.field(n).type)}
    useful = [n for n in table.column_names if n not in nested or _has_meaning(n)]
    rows = []
    for number, cells in enumerate(table.select(useful).to_pylist(), 1):
        place = f"row {number}"
        rows.append((place, {name: _decoded(cell, uri, place, name) for name, cell in cells.items()}))
    return LabelTable(useful, rows, nested & set(useful))


def _decoded(cell: Any, uri: str, place: str, column: str) -> Any:
    """Text that another tool wrote as bytes."""
    if isinstance(cell, list):
        return [_decoded(item, uri, place, column) for item in cell]
    if not isinstance(cell, bytes):
        return cell
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}, {place}: the bytes in column {column!r} are no UTF-8 text") from error


def _has_meaning(name: str) -> bool:
    return is_label_column(name) or name in _KNOWN_COLUMNS


def _read_csv(uri: str, data: bytes) -> LabelTable:
    for magic, hint in _MAGIC:
        if data.startswith(magic):
            raise UserError(f"{uri} is {hint}, with columns `path` and `label`")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 (byte {error.start}): save it as UTF-8 CSV") from error
    if text.lstrip()[:1] in ("{", "["):
        raise _json_file(uri, text)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        first = next(rows, [])
        body = [(rows.line_num, cells) for cells in rows if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UserError(f"{uri}, line {rows.line_num}: {error}") from error
    columns = _spelled([name.strip() for name in first])
    _check_header(uri, columns)
    _check_unique(uri, columns)
    return LabelTable(columns, _as_dicts(uri, columns, body), set())


def _json_file(uri: str, text: str) -> UserError:
    kind = "JSON"
    try:
        found = json.loads(text)
    except ValueError:
        lines = text.splitlines()
        kind = "JSON Lines" if len(lines) > 1 and lines[0].rstrip().endswith("}") else "JSON, and broken"
    else:
        if isinstance(found, dict) and isinstance(found.get("database"), dict):
            kind = "JSON as ActivityNet has it"
        elif isinstance(found, dict) and {"images", "videos", "annotations"} & set(found):
            kind = "JSON as COCO has it"
        elif isinstance(found, dict) and not text.strip().count("\n"):
            kind = "JSON Lines"
    return UserError(
        f"{uri} is {kind}, not a table: write it as CSV or Parquet with columns `path` and `label`"
    )


def _check_header(uri: str, columns: list[str]) -> None:
    """Lists of other tools begin with the first video.

    Raises:
        UserError: the first line names a video, and no column that is known.
    """
    if not columns or any(_has_meaning(name) for name in columns):
        return
    first = columns[0]
    spaced = re.fullmatch(r"(\S.*?)((?:\s+\d+)+)", first) if len(columns) == 1 else None
    numbers = len(columns) > 1 and all(cell.lstrip("-").isdigit() for cell in columns[1:])
    if not (spaced or numbers or any(_VIDEO_NAME.fullmatch(cell) for cell in columns)):
        return
    tool = "MMAction2" if spaced else "SlowFast" if numbers else "SlowFast or MMAction2"
    todo = "write it as CSV under" if spaced else "put above it"
    raise UserError(
        f"{uri} has no header: its first line is {first!r}, like a list of {tool}\n"
        f"{todo} a line with the names of its columns, for example: path,label"
    )


def _check_unique(uri: str, columns: list[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1 and name})
    if twice:
        raise UserError(f"{uri}: the column {twice[0]!r} stands there twice; rename one")


def _spelled(names: list[str]) -> list[str]:
    """Names of columns as this package spells them, where none is spelled so already."""
    found = list(names)
    for number, name in enumerate(names):
        plain = name.strip().casefold()
        if plain in _KNOWN_COLUMNS and plain not in found:
            found[number] = plain
        elif plain.startswith("label_") and not name.startswith("label_"):
            found[number] = "label_" + name.strip()[len("label_") :]
    if "path" not in found and "uri" not in found:
        lowered = [name.strip().casefold() for name in found]
        other = next((name for name in _PATH_COLUMNS if name in lowered), None)
        if other is not None:
            found[lowered.index(other)] = "path"
    return found


def _as_dicts(
    uri: str, columns: list[str], body: list[tuple[int, list[str]]]
) -> list[tuple[str, dict[str, Any]]]:
    for line, cells in body:
        if len(cells) != len(columns):
            raise UserError(
                f"{uri}, line {line}: {len(cells)} cells under {len(columns)} columns; "
                "quote paths and labels that hold the delimiter"
            )
    return [(f"line {line}", dict(zip(columns, cells, strict=True))) for line, cells in body]

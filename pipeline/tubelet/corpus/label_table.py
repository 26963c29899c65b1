"""Read a label table: CSV, TSV, Parquet, JSON Lines or a JSON list; what is no table is named."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from tubelet.config import UserError
from tubelet.corpus.manifest import is_label_column

# Other names of the column `path`, as Hugging Face's folders and other lists of videos have them.
_PATH_COLUMNS = ("file_name", "filename", "video", "video_path")
_KNOWN_COLUMNS = ("path", "uri", "key", "label", "split", "group", "clip_start_s", "clip_end_s")
# Other names of the bounds of a segment, in seconds.
_BOUND_COLUMNS = {
    "clip_start_s": ("start_s", "time_start"),
    "clip_end_s": ("end_s", "time_end"),
}
VIDEO_NAME = re.compile(r"\S.*\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|ts|wmv|flv|3gp|ogv|gif)", re.IGNORECASE)
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


def read_label_table(uri: str, data: bytes) -> LabelTable:
    """The table that ``data``, the content of ``uri``, is.

    Raises:
        UserError: it is no table with a header; names the format where it is known.
    """
    if data[:4] == b"PAR1":
        return _read_parquet(uri, data)
    text = decoded_text(uri, data)
    return _read_json(uri, text) if text.lstrip()[:1] in ("{", "[") else _read_csv(uri, text)


def decoded_text(uri: str, data: bytes) -> str:
    """The content of ``uri`` as UTF-8 text.

    Raises:
        UserError: it is none; says what it is where that is known.
    """
    for magic, hint in _MAGIC:
        if data.startswith(magic):
            raise UserError(f"{uri} is {hint}, with columns `path` and `label`")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 (byte {error.start}): save it as UTF-8 CSV") from error


def text_of(cell: Any) -> str | None:
    """A cell as text; None for an empty one."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return str(cell).strip() or None


def _read_json(uri: str, text: str) -> LabelTable:
    """A list of objects, or one object per line."""
    try:
        found = json.loads(text)
    except ValueError:
        found = _json_lines(uri, text)
    if isinstance(found, dict):
        if {"images", "videos", "annotations"} & set(found):
            raise UserError(
                f"{uri} is JSON as COCO has it: write it as CSV or Parquet with columns `path` and `label`"
            )
        found = [found]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UserError(
            f"{uri} is JSON, but no list of objects: write one per video, with `path` and `label`"
        )
    names = list(dict.fromkeys(name for row in found for name in row))
    spelled = dict(zip(names, _spelled(names), strict=True))
    rows = [{spelled[name]: cell for name, cell in row.items()} for row in found]
    many = {name for row in rows for name, cell in row.items() if isinstance(cell, list)}
    plain = [name for name in spelled.values() if not any(isinstance(row.get(name), dict) for row in rows)]
    return LabelTable(plain, [(f"row {number}", row) for number, row in enumerate(rows, 1)], many)


def _json_lines(uri: str, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{uri}, line {number}: broken JSON: {error}") from error
    return rows


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


def _read_csv(uri: str, text: str) -> LabelTable:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        first = next(rows, [])
        body = [(rows.line_num, cells) for cells in rows if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UserError(f"{uri}, line {rows.line_num}: {error}") from error
    columns = _spelled([name.strip() for name in first])
    _check_unique(uri, columns)
    return LabelTable(columns, _as_dicts(uri, columns, body), set())


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
    lowered = [name.strip().casefold() for name in found]
    for column, others in _BOUND_COLUMNS.items():
        if column not in found and "path" in found:
            other = next((name for name in others if name in lowered), None)
            if other is not None:
                found[lowered.index(other)] = column
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

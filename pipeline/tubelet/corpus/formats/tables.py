"""Tables with a row per video or per part of one: our own layout, Hugging Face's metadata, corrections."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation, Found, LabelFile, seconds
from tubelet.corpus.label_source import Value, composed
from tubelet.corpus.label_table import LabelTable, text_of
from tubelet.corpus.manifest import is_label_column
from tubelet.corpus.split_names import is_split_word, normalise_split

SEPARATOR = "|"
# One cell with the separator among so many with a label is more likely a name than two labels.
_FEW_CELLS = 4
# What a table of corrections has beside the names of the videos and their labels.
_CORRECTION_COLUMNS = {"window", "at"}
_NAMES = ("path", "uri", "key")


def read_table(file: LabelFile, table: LabelTable, split_column: str, nearest: str) -> Found:
    """A table as this package documents it (see ``tubelet.corpus.labels``).

    Args:
        file: the file.
        table: its cells.
        split_column: the column that splits are to be taken from.
        nearest: what the layout is most like, for messages.

    Raises:
        UserError: a column lacks, there are no labels, or a cell makes no sense.
    """
    corrections = set(table.columns) >= _CORRECTION_COLUMNS
    many = _heads(file.uri, table, nearest, corrections)
    split_cells = _find_column(table.columns, split_column)
    of_folder = _split_of_folder(file) if split_cells is None and split_column == "split" else None
    found = []
    for place, cells in table.rows:
        path, uri, key = _name(cells.get("path")), text_of(cells.get("uri")), text_of(cells.get("key"))
        if path and "://" in path:
            path, uri = None, text_of(path)
        if not path and not uri and not key:
            raise UserError(f"{file.uri}, {place}: neither path nor uri is given")
        start_s, end_s = (
            seconds(cells.get(name), file.uri, place) for name in ("clip_start_s", "clip_end_s")
        )
        if start_s is not None and end_s is not None and end_s <= start_s:
            raise UserError(f"{file.uri}, {place}: the segment ends at {end_s:g} s, before it begins")
        if corrections and start_s is None and end_s is None and _window(cells, file.uri, place):
            raise UserError(f"{file.uri}, {place}: a window without clip_start_s and clip_end_s")
        values = {name: _value(cells.get(name), several) for name, several in many.items()}
        found.append(
            Annotation(
                place,
                path,
                values,
                None,
                start_s,
                end_s,
                split=text_of(cells.get(split_cells)) if split_cells else of_folder,
                group=text_of(cells.get("group")),
                uri=uri,
                key=key,
                at=_time(cells.get("at"), file.uri, place) if corrections else None,
            )
        )
    return Found(
        found,
        many,
        splits=split_cells is not None or of_folder is not None,
        bare=False,
        corrections=corrections,
        split_column=split_column,
        columns=table.columns,
    )


def _heads(uri: str, table: LabelTable, nearest: str, corrections: bool) -> dict[str, bool]:
    """Label columns, ``label`` first, and whether each is multi-label."""
    columns = table.columns
    if not set(_NAMES) & set(columns):
        raise UserError(
            f"{uri} has neither a column `path` nor `uri`; its columns are {_quote(columns)}\n{nearest}"
        )
    names = sorted((n for n in columns if is_label_column(n)), key=lambda n: (n != "label", n))
    if not names:
        raise UserError(
            f"{uri} has no column `label` (or `label_<head>`); its columns are {_quote(columns)}\n{nearest}"
        )
    if not corrections and not any(text_of(cells.get(name)) for _, cells in table.rows for name in names):
        raise UserError(f"{uri} has no labels: every cell of {_quote(names)} is empty")
    return {"label": False} | {name: name in table.many or _is_split(uri, table, name) for name in names}


def _is_split(uri: str, table: LabelTable, name: str) -> bool:
    """Whether the cells of a column hold several labels each.

    Raises:
        UserError: one cell alone looks so, and may as well be a name with ``|`` in it.
    """
    cells = [(place, text) for place, row in table.rows if (text := text_of(row.get(name)))]
    several = [(place, text) for place, text in cells if SEPARATOR in text]
    if len(several) == 1 and len(cells) > _FEW_CELLS:
        place, text = several[0]
        if not {part.strip() for part in text.split(SEPARATOR)} & {other for _, other in cells}:
            raise UserError(
                f"{uri}, {place}: {text!r} is the only cell of {name!r} with {SEPARATOR!r}, which parts "
                f"labels\nwrite a label without it, or the labels of each video as lists in a Parquet file"
            )
    return bool(several)


def _value(cell: Any, many: bool) -> Value:
    if isinstance(cell, (list, tuple)):
        return [composed(text) for text in map(text_of, cell) if text]
    text = text_of(cell)
    if text is None:
        return None
    return (
        [part.strip() for part in composed(text).split(SEPARATOR) if part.strip()] if many else composed(text)
    )


def _name(cell: Any) -> str | None:
    """A cell that names a file, with the spaces that it begins or ends with; None for an empty one."""
    return None if text_of(cell) is None else str(cell)


def _window(cells: dict[str, Any], uri: str, place: str) -> int:
    text = text_of(cells.get("window")) or "0"
    try:
        return int(float(text))
    except ValueError as error:
        raise UserError(f"{uri}, {place}: the window {text!r} is no number") from error


def _time(cell: Any, uri: str, place: str) -> datetime:
    """A moment in UTC; one without a zone is taken for that."""
    try:
        found = cell if isinstance(cell, datetime) else datetime.fromisoformat(str(cell).strip())
    except ValueError as error:
        raise UserError(
            f"{uri}, {place}: {cell!r} in column `at` is no time as 2026-01-31T12:00:00"
        ) from error
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _split_of_folder(file: LabelFile) -> str | None:
    """``train/metadata.csv``, as Hugging Face's folders have it, is about the split ``train``."""
    folder = file.uri.rpartition("/")[0].rpartition("/")[2]
    if re.fullmatch(r"metadata\.\w+", file.name) and is_split_word(folder):
        return normalise_split(folder)
    return None


def _find_column(columns: list[str], name: str) -> str | None:
    """The column called ``name``, failing that in another case."""
    if name in columns:
        return name
    return next((column for column in columns if column.casefold() == name.casefold()), None)


def _quote(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) or "none"

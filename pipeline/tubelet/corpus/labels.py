"""Labels of the videos: from a label file, or from the names of class folders.

A label file is a CSV (``,``, ``;`` or tab; UTF-8) or Parquet table with a header and one row a video:

- ``path`` (relative to SRC, or to the folder of the label file) or ``uri``, or both;
- ``label``, and for models with several heads ``label_<head>``, one column each. A column in which any cell
  holds ``|`` is multi-label: ``run|jump`` is the list ``[run, jump]``. An empty cell is no label;
- where present ``split`` and ``group`` (the person or the scene: a group never straddles two splits).

A row names an object by its exact path or URI; failing that, the comparison is repeated with both sides in
Unicode NFC, ``\\`` as ``/``, and without leading ``./`` or ``/``.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Protocol

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.manifest import is_label_column
from tubelet.storage import ObjectInfo, StorageOptions

SEPARATOR = "|"
FOLDERS = "folders"
_EXAMPLES = 3
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}

Value = str | list[str] | None


@dataclass(frozen=True)
class LabelRow:
    """What is known of one video: values by label column, its group, and the column that splits go by."""

    values: dict[str, Value] = field(default_factory=dict)
    group: str | None = None
    split: str | None = None


NO_LABELS = LabelRow()


class Examples:
    """Counts names and keeps the first three, to be shown in a message."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if len(self._first) < _EXAMPLES:
            self._first.append(name)

    def __str__(self) -> str:
        return ", ".join(repr(name) for name in self._first) or "none"


class Labels(Protocol):
    """A source of labels."""

    heads: dict[str, bool]
    """Label columns, and whether each is multi-label."""
    split_column: str | None
    """The column that :attr:`LabelRow.split` was taken from, if there is one."""

    def lookup(self, info: ObjectInfo) -> LabelRow:
        """The labels of an object (``NO_LABELS`` where there are none); counts what matched."""
        ...

    def check(self) -> list[str]:
        """Warnings, after every object was looked up.

        Raises:
            UserError: nothing matched.
        """
        ...


class NoLabels:
    """A corpus without labels."""

    def __init__(self) -> None:
        self.heads: dict[str, bool] = {"label": False}
        self.split_column: str | None = None

    def lookup(self, info: ObjectInfo) -> LabelRow:
        del info
        return NO_LABELS

    def check(self) -> list[str]:
        return []


class FolderLabels:
    """The class is the first folder below SRC; below folders ``train``, ``val``, ``test`` the second."""

    def __init__(self, src: str, options: StorageOptions) -> None:
        self.heads: dict[str, bool] = {"label": False}
        self._src = src
        folders = [name for name in storage.list_folders(src, options) if not storage.is_hidden(name)]
        self._by_split = bool(folders) and all(name.lower() in _SPLIT_NAMES for name in folders)
        self.split_column = "split" if self._by_split else None
        self._classes: set[str] = set()
        self._outside = Examples()

    def lookup(self, info: ObjectInfo) -> LabelRow:
        folders = info.path.split("/")[:-1]
        split = folders.pop(0) if self._by_split and folders else None
        if not folders:
            self._outside.add(info.path)
            return LabelRow(split=split)
        self._classes.add(folders[0])
        return LabelRow({"label": folders[0]}, split=split)

    def check(self) -> list[str]:
        if not self._classes:
            raise UserError(
                f"--labels folders: nothing under {self._src} lies in a class folder, for example "
                f"{self._outside}\nput the videos of each class in a folder, or give a label file"
            )
        warnings = _one_class(self._classes)
        if self._outside.count:
            warnings.append(f"{self._outside.count} objects lie in no class folder: {self._outside}")
        return warnings


class FileLabels:
    """Labels from a table."""

    def __init__(self, uri: str, src: str, options: StorageOptions, split_column: str = "split") -> None:
        """Read the label file at ``uri`` for the objects below ``src``.

        Raises:
            UserError: the file is missing or malformed, lacks a column, has no labels, or contradicts itself.
        """
        self.uri, self._src = uri, src
        table = _read(uri, options)
        self.split_column = split_column if split_column in table.columns else None
        self.columns = table.columns
        self.heads = _heads(uri, table)
        self._rows: list[LabelRow] = []
        self._names: list[str] = []
        self._matched = bytearray()
        self._by_path: dict[str, int] = {}
        self._by_uri: dict[str, int] = {}
        for place, cells in table.rows:
            self._add(place, cells)
        self._by_plain = self._plain_names()
        self._below = _folder_below(storage.parent(uri), src)
        self._unlabelled = Examples()
        self._objects = 0
        self._classes: set[str] = set()

    def lookup(self, info: ObjectInfo) -> LabelRow:
        self._objects += 1
        found = self._find(info)
        if not found:
            self._unlabelled.add(info.path)
            return NO_LABELS
        row = self._rows[found[0]]
        for other in found[1:]:
            if self._rows[other] != row:
                raise UserError(
                    f"{self.uri}: two rows name {info.path!r} and disagree: {_show(row)} and "
                    f"{_show(self._rows[other])}\nkeep one of them"
                )
        for number in found:
            self._matched[number] = 1
        self._note_classes(row)
        return row

    def check(self) -> list[str]:
        matched = sum(self._matched)
        unmatched = Examples()
        for name, hit in zip(self._names, self._matched, strict=True):
            if not hit:
                unmatched.add(name)
        sides = f"it names {unmatched}; without a row are {self._unlabelled}"
        if not matched:
            of = f"0 of {len(self._rows)} rows match the {self._objects} objects"
            raise UserError(f"{self.uri}: {of} under {self._src}\n{sides}")
        if not self._classes:
            raise UserError(f"{self.uri}: no object under {self._src} has a label; fill the column `label`")
        warnings = _one_class(self._classes) if len(self.heads) == 1 else []
        if unmatched.count:
            warnings.append(f"{self.uri}: {matched} of {len(self._rows)} rows match an object; {sides}")
        return warnings

    def _add(self, place: str, cells: dict[str, Any]) -> None:
        path, uri = _text(cells.get("path")), _text(cells.get("uri"))
        if path and "://" in path:
            path, uri = None, path
        if not path and not uri:
            raise UserError(f"{self.uri}, {place}: neither path nor uri is given")
        values = {name: _value(cells.get(name), many) for name, many in self.heads.items()}
        split = _text(cells.get(self.split_column)) if self.split_column else None
        row = LabelRow(values, _text(cells.get("group")), split)
        names = [(self._by_path, path)] if path else []
        if uri:
            names.append((self._by_uri, storage.normalise_uri(uri)))
        earlier = {index[name] for index, name in names if name is not None and name in index}
        for number in earlier:
            if self._rows[number] != row:
                raise UserError(
                    f"{self.uri}, {place}: {path or uri!r} stands there twice and differently: "
                    f"{_show(self._rows[number])} and {_show(row)}\nkeep one of the rows"
                )
        if earlier:
            return
        for index, name in names:
            index[str(name)] = len(self._rows)
        self._rows.append(row)
        self._names.append(str(path or uri))
        self._matched.append(0)

    def _find(self, info: ObjectInfo) -> list[int]:
        exact = [self._by_path.get(info.path), self._by_uri.get(info.uri), self._by_path.get(info.uri)]
        if self._below is not None:
            exact.append(self._by_path.get(self._below + info.path))
        found = [number for number in dict.fromkeys(exact) if number is not None]
        return found or self._by_plain.get(_plain(info.path), [])

    def _plain_names(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for name, number in self._by_path.items():
            found.setdefault(_plain(name), []).append(number)
        return found

    def _note_classes(self, row: LabelRow) -> None:
        for value in row.values.values():
            self._classes.update([value] if isinstance(value, str) else value or ())


def load_labels(source: str | None, src: str, options: StorageOptions, split_column: str = "split") -> Labels:
    """Labels from ``source``: a label file, ``folders``, or None.

    Raises:
        UserError: see :class:`FileLabels`.
    """
    if source is None:
        return NoLabels()
    if source == FOLDERS:
        return FolderLabels(src, options)
    return FileLabels(storage.normalise_uri(source), src, options, split_column)


@dataclass(frozen=True)
class _Table:
    columns: list[str]
    rows: list[tuple[str, dict[str, Any]]]
    """Where each row stands in the file (for messages), and its cells."""
    many: set[str]
    """Columns that are lists already."""


def _read(uri: str, options: StorageOptions) -> _Table:
    try:
        data = storage.read_bytes(uri, options)
    except FileNotFoundError as error:
        raise UserError(f"there is no label file {uri}: check --labels (or give --labels folders)") from error
    except OSError as error:
        raise UserError(f"cannot read the label file {uri}: {error.strerror or error}") from error
    return _read_parquet(uri, data) if data[:4] == b"PAR1" else _read_csv(uri, data)


def _read_parquet(uri: str, data: bytes) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    useful = [
        n for n in table.column_names if not pa.types.is_nested(table.schema.field(n).type) or _wanted(n)
    ]
    table = table.select(useful)
    many = {n for n in useful if pa.types.is_nested(table.schema.field(n).type)}
    rows = [(f"row {i + 1}", row) for i, row in enumerate(table.to_pylist())]
    return _Table(useful, rows, many)


def _wanted(name: str) -> bool:
    return is_label_column(name) or name in ("path", "uri", "group", "split")


def _read_csv(uri: str, data: bytes) -> _Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 (byte {error.start}): save it as UTF-8 CSV") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [name.strip() for name in next(rows, [])]
        body = [(rows.line_num, cells) for cells in rows if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UserError(f"{uri}, line {rows.line_num}: {error}") from error
    return _Table(columns, _as_dicts(uri, columns, body), set())


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


def _heads(uri: str, table: _Table) -> dict[str, bool]:
    """Label columns, ``label`` first, and whether each is multi-label."""
    columns = table.columns
    twice = sorted({name for name in columns if columns.count(name) > 1 and name})
    if twice:
        raise UserError(f"{uri}: the column {twice[0]!r} stands there twice; rename one")
    if "path" not in columns and "uri" not in columns:
        raise UserError(f"{uri} has neither a column `path` nor `uri`; its columns are {_quote(columns)}")
    names = sorted((n for n in columns if is_label_column(n)), key=lambda n: (n != "label", n))
    if not names:
        raise UserError(f"{uri} has no column `label` (or `label_<head>`); its columns are {_quote(columns)}")
    if not any(_text(cells.get(name)) for _, cells in table.rows for name in names):
        raise UserError(f"{uri} has no labels: every cell of {_quote(names)} is empty")
    split = {n for n in names if any(SEPARATOR in (_text(cells.get(n)) or "") for _, cells in table.rows)}
    return {"label": False} | {name: name in table.many or name in split for name in names}


def _value(cell: Any, many: bool) -> Value:
    if isinstance(cell, (list, tuple)):
        return [text for text in map(_text, cell) if text]
    text = _text(cell)
    if text is None or not many:
        return text
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def _text(cell: Any) -> str | None:
    """A cell as text; None for an empty one."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return str(cell).strip() or None


def _plain(path: str) -> str:
    text = unicodedata.normalize("NFC", path).replace("\\", "/").lstrip("/")
    return posixpath.normpath(text)


def _folder_below(base: str, src: str) -> str | None:
    """``x/`` where ``src`` is ``base/x``: paths relative to the label file's folder begin with it."""
    prefix = base.rstrip("/") + "/"
    return src[len(prefix) :] + "/" if src.startswith(prefix) and src != prefix else None


def _one_class(classes: set[str]) -> list[str]:
    if len(classes) > 1:
        return []
    return [f"all labels are of one class, {next(iter(classes))!r}: there is nothing to train on yet"]


def _show(row: LabelRow) -> str:
    known = {**row.values, "split": row.split, "group": row.group}
    return ", ".join(f"{name}={value!r}" for name, value in known.items() if value is not None) or "nothing"


def _quote(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) or "none"

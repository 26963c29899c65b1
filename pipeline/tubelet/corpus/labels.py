r"""Labels of the videos: from a label file, or from the names of class folders.

A label file is a CSV (``,``, ``;`` or tab; UTF-8) or Parquet table with a header and one row per video:

- ``path`` (relative to SRC, or to the folder of the label file; also called ``file_name``, ``filename``,
  ``video`` or ``video_path``) or ``uri``, or both;
- ``label``, and for models with several heads ``label_<head>``, one column each. A column in which cells hold
  ``|`` is multi-label: ``run|jump`` is the list ``[run, jump]``. An empty cell is no label;
- where present ``split`` and ``group`` (the person or the scene: a group never straddles two splits).

A row names an object by its exact path or URI; failing that, the comparison is repeated with both sides in
Unicode NFC, ``\`` as ``/``, without leading ``./`` or ``/``, and without spaces at the ends of the cell.
Labels are Unicode NFC, whatever form the file or the folder has.
"""

from __future__ import annotations

import math
import posixpath
import re
import unicodedata
from typing import Any

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.label_folders import FolderLabels
from tubelet.corpus.label_source import (
    NO_LABELS,
    ClassNames,
    Examples,
    LabelRow,
    Labels,
    NoLabels,
    Value,
    composed,
)
from tubelet.corpus.label_table import LabelTable, read_label_table
from tubelet.corpus.manifest import is_label_column
from tubelet.storage import ObjectInfo, StorageOptions

__all__ = ["FOLDERS", "NO_LABELS", "Examples", "FileLabels", "LabelRow", "Labels", "NoLabels", "load_labels"]

SEPARATOR = "|"
FOLDERS = "folders"
# One cell with the separator among so many with a label is more likely a name than two labels.
_FEW_CELLS = 4
_ESCAPED_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


class FileLabels:
    """Labels from a table."""

    def __init__(self, uri: str, src: str, options: StorageOptions, split_column: str = "split") -> None:
        """Read the label file at ``uri`` for the objects below ``src``.

        Raises:
            UserError: the file is missing or malformed, lacks a column, has no labels, or contradicts itself.
        """
        self.uri, self._src = uri, src
        table = read_label_table(uri, options)
        self._split_cells = _find_column(table.columns, split_column)
        self.split_column = None if self._split_cells is None else split_column
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
        self._classes = ClassNames()

    def lookup(self, info: ObjectInfo) -> LabelRow:
        """The row that names an object.

        Raises:
            UserError: two rows do, and disagree.
        """
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
        for head, value in row.values.items():
            if value:
                self._classes.add(head, [value] if isinstance(value, str) else value)
        return row

    def check(self) -> list[str]:
        """See :meth:`Labels.check`."""
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
        warnings = self._classes.warnings()
        if len(self.heads) > 1:
            heads = ", ".join(name for name in self.heads if name != "label")
            warnings.append(f"{self.uri}: labels of heads of their own, beside `label`: {heads}")
        if unmatched.count:
            warnings.append(f"{self.uri}: {matched} of {len(self._rows)} rows match an object; {sides}")
        return warnings

    def _add(self, place: str, cells: dict[str, Any]) -> None:
        path, uri = _name(cells.get("path")), _text(cells.get("uri"))
        if path and "://" in path:
            path, uri = None, _text(path)
        if not path and not uri:
            raise UserError(f"{self.uri}, {place}: neither path nor uri is given")
        values = {name: _value(cells.get(name), many) for name, many in self.heads.items()}
        split = _text(cells.get(self._split_cells)) if self._split_cells else None
        row = LabelRow(values, _text(cells.get("group")), split, named=True)
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
        if found:
            return found
        # A row whose cell has spaces at its ends names the object with the spaces first.
        return [
            number
            for number in self._by_plain.get(_plain(_latin1(info.path)), [])
            if not (self._matched[number] and self._names[number] != self._names[number].strip())
        ]

    def _plain_names(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for name, number in self._by_path.items():
            found.setdefault(_plain(_latin1(name.strip())), []).append(number)
        return found


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


def _heads(uri: str, table: LabelTable) -> dict[str, bool]:
    """Label columns, ``label`` first, and whether each is multi-label."""
    columns = table.columns
    if "path" not in columns and "uri" not in columns:
        raise UserError(f"{uri} has neither a column `path` nor `uri`; its columns are {_quote(columns)}")
    names = sorted((n for n in columns if is_label_column(n)), key=lambda n: (n != "label", n))
    if not names:
        raise UserError(f"{uri} has no column `label` (or `label_<head>`); its columns are {_quote(columns)}")
    if not any(_text(cells.get(name)) for _, cells in table.rows for name in names):
        raise UserError(f"{uri} has no labels: every cell of {_quote(names)} is empty")
    return {"label": False} | {name: name in table.many or _is_split(uri, table, name) for name in names}


def _is_split(uri: str, table: LabelTable, name: str) -> bool:
    """Whether the cells of a column hold several labels each.

    Raises:
        UserError: one cell alone looks so, and may as well be a name with ``|`` in it.
    """
    cells = [(place, text) for place, row in table.rows if (text := _text(row.get(name)))]
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
        return [composed(text) for text in map(_text, cell) if text]
    text = _text(cell)
    if text is None:
        return None
    return (
        [part.strip() for part in composed(text).split(SEPARATOR) if part.strip()] if many else composed(text)
    )


def _text(cell: Any) -> str | None:
    """A cell as text; None for an empty one."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return str(cell).strip() or None


def _name(cell: Any) -> str | None:
    """A cell that names a file, with the spaces that it begins or ends with; None for an empty one."""
    return None if _text(cell) is None else str(cell)


def _latin1(path: str) -> str:
    """Bytes of file names that are no UTF-8, read as Latin-1, as those who wrote them did."""
    return _ESCAPED_BYTE.sub(lambda found: chr(int(found[1], 16)), path) if "\\udc" in path else path


def _plain(path: str) -> str:
    text = unicodedata.normalize("NFC", path).replace("\\", "/").lstrip("/")
    return posixpath.normpath(text)


def _find_column(columns: list[str], name: str) -> str | None:
    """The column called ``name``, failing that in another case."""
    if name in columns:
        return name
    return next((column for column in columns if column.casefold() == name.casefold()), None)


def _folder_below(base: str, src: str) -> str | None:
    """``x/`` where ``src`` is ``base/x``: paths relative to the label file's folder begin with it."""
    prefix = base.rstrip("/") + "/"
    return src[len(prefix) :] + "/" if src.startswith(prefix) and src != prefix else None


def _show(row: LabelRow) -> str:
    known = {**row.values, "split": row.split, "group": row.group}
    return ", ".join(f"{name}={value!r}" for name, value in known.items() if value is not None) or "nothing"


def _quote(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) or "none"

"""Find out which layout a label file has, and read it."""

from __future__ import annotations

import difflib
import re

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.formats import (
    activitynet,
    ava,
    charades,
    cvat,
    epic,
    kinetics,
    label_studio,
    lists,
    something,
    ucf_hmdb,
)
from tubelet.corpus.formats.base import FileFormat, Found, LabelFile, TableFormat
from tubelet.corpus.formats.tables import read_table
from tubelet.corpus.label_table import LabelTable, read_label_table
from tubelet.storage import StorageOptions

# The first that matches is taken: what is told by a name or a document before what is told by single lines.
FILE_FORMATS: tuple[FileFormat, ...] = (
    *ucf_hmdb.FORMATS,
    *cvat.FORMATS,
    *label_studio.FORMATS,
    *activitynet.FORMATS,
    *ava.FORMATS,
    *lists.FORMATS,
)
TABLE_FORMATS: tuple[TableFormat, ...] = (
    *kinetics.FORMATS,
    *epic.FORMATS,
    *charades.FORMATS,
    *something.FORMATS,
)
_OWN_COLUMNS = (("ours", ("path", "label")), ("Hugging Face", ("file_name", "label")))
_OWN_NAMES = frozenset({"path", "uri"})
# Of a folder with labels, the file that stands for all of it.
_FOLDER_FILES = (*ucf_hmdb.FOLDER_FILES, r"metadata\.(csv|jsonl|parquet)")


def read_labels(uri: str, options: StorageOptions, split_column: str) -> tuple[LabelFile, Found]:
    """The label file at ``uri``, or the one that stands for the folder there.

    Args:
        uri: where it lies.
        options: how to reach it.
        split_column: the column of a table that splits are to be taken from.

    Raises:
        UserError: it is missing, damaged, or has a layout that is not known (the message says what it has,
            and which layout is the nearest).
    """
    file = _open(uri, options)
    if file.data[:4] != b"PAR1":
        for one in FILE_FORMATS:
            if one.matches(file):
                return file, one.read(file)
    table = read_label_table(file.uri, file.data)
    lowered = {name.casefold() for name in table.columns}
    if not (_OWN_NAMES & set(table.columns) and any(name.startswith("label") for name in table.columns)):
        for known in TABLE_FORMATS:
            if lowered >= set(known.columns):
                return file, known.read(file, _lowered(table))
    return file, read_table(file, table, split_column, _nearest(table.columns))


def _open(uri: str, options: StorageOptions) -> LabelFile:
    try:
        return LabelFile(uri, storage.read_bytes(uri, options), options)
    except (FileNotFoundError, IsADirectoryError) as error:
        names = [] if storage.stat(uri, options) else storage.list_names(uri, options)
        for pattern in _FOLDER_FILES:
            for name in sorted(names):
                if re.fullmatch(pattern, name):
                    return _open(storage.join(uri, name), options)
        if names:
            raise UserError(
                f"the folder {uri} holds no known list of labels, but {', '.join(sorted(names)[:3])}, …\n"
                "name the label file itself (or give --labels folders)"
            ) from error
        raise UserError(f"there is no label file {uri}: check --labels (or give --labels folders)") from error
    except OSError as error:
        raise UserError(f"cannot read the label file {uri}: {error.strerror or error}") from error


def _lowered(table: LabelTable) -> LabelTable:
    """Published columns in lower case, whatever a copy made of them."""
    names = {name: name.casefold() for name in table.columns}
    rows = [(place, {names.get(n, n): cell for n, cell in cells.items()}) for place, cells in table.rows]
    return LabelTable(list(names.values()), rows, {names.get(n, n) for n in table.many})


def _nearest(columns: list[str]) -> str:
    """The layout whose columns are most like these, in words."""
    lowered = [name.casefold() for name in columns]

    def likeness(wanted: tuple[str, ...]) -> float:
        best = [
            max((difflib.SequenceMatcher(None, w, c).ratio() for c in lowered), default=0) for w in wanted
        ]
        return sum(best) / len(wanted)

    known = [*_OWN_COLUMNS, *((one.name, one.columns) for one in TABLE_FORMATS)]
    name, wanted = max(known, key=lambda pair: likeness(pair[1]))
    return f"the nearest layout that is read is {name}, with the columns {', '.join(wanted)}"

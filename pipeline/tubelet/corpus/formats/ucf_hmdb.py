"""UCF101 and HMDB51: lists of the videos of a split; the other lists of the same split lie beside.

- UCF101: ``trainlist01.txt`` (``Class/v_Class_g08_c01.avi 1``), ``testlist01.txt`` (no number) and
  ``classInd.txt``; the folder is the class.
- HMDB51: ``CLASS_test_split1.txt`` for each class, with ``NAME.avi 1`` for training, 2 for testing, and 0
  for neither.
"""

from __future__ import annotations

import re

from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation, FileFormat, Found, LabelFile

_UCF = re.compile(r"(train|test)list(\d+)\.txt")
_UCF_FIRST = r"(train|test)list01\.txt"
_HMDB = re.compile(r"(.+)_test_split(\d+)\.txt")
_HMDB_SPLIT = {"0": None, "1": "train", "2": "test"}


def _read_ucf(file: LabelFile) -> Found:
    known = _UCF.fullmatch(file.name)
    pattern = _UCF_FIRST if known is None else rf"(train|test)list{known[2]}\.txt"
    names = file.beside(pattern)
    found = []
    for name in names:
        part = file if name == file.name else file.sibling(name)
        for place, line in part.lines():
            path = re.sub(r"\s+\d+$", "", line)
            label, slash, _ = path.rpartition("/")
            if not slash:
                raise UserError(f"{part.uri}, {place}: {line!r} is not Class/NAME.avi")
            label = label.rpartition("/")[2]
            found.append(
                Annotation(f"{name}, {place}", path, {"label": label}, split=name.partition("list")[0])
            )
    if not found:
        raise UserError(
            f"{file.uri}: the names of the videos are in trainlist01.txt and testlist01.txt: none is there"
        )
    return Found(found, {"label": False}, splits=True)


def _read_hmdb(file: LabelFile) -> Found:
    known = _HMDB.fullmatch(file.name)
    assert known is not None
    found, neither = [], 0
    for name in file.beside(rf".+_test_split{known[2]}\.txt"):
        label = name[: -len(f"_test_split{known[2]}.txt")]
        part = file if name == file.name else file.sibling(name)
        for place, line in part.lines():
            path, _, number = line.rpartition(" ")
            if number not in _HMDB_SPLIT or not path.strip():
                raise UserError(f"{part.uri}, {place}: {line!r} is not NAME.avi 0, 1 or 2")
            split = _HMDB_SPLIT[number]
            neither += split is None
            found.append(
                Annotation(f"{name}, {place}", f"{label}/{path.strip()}", {"label": label}, split=split)
            )
    notes = [f"HMDB51's split {known[2]} leaves {neither} videos out: they have no split"] if neither else []
    return Found(found, {"label": False}, splits=True, notes=notes)


FORMATS = (
    FileFormat(
        "UCF101",
        "trainlist01.txt, testlist01.txt, classInd.txt",
        lambda file: bool(_UCF.fullmatch(file.name)) or file.name == "classInd.txt",
        _read_ucf,
    ),
    FileFormat("HMDB51", "CLASS_test_split1.txt", lambda file: bool(_HMDB.fullmatch(file.name)), _read_hmdb),
)
# The file of a folder that stands for all of it.
FOLDER_FILES = (_UCF.pattern, _HMDB.pattern)

"""Lists without a header: MMAction2 (``path label``, ``folder frames label``) and SlowFast (``path label``).

Classes are numbers there; ``label_map….txt``, one name per line, names them where it lies beside.
"""

from __future__ import annotations

import re

from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation, FileFormat, Found, LabelFile
from tubelet.corpus.label_source import Value
from tubelet.corpus.label_table import VIDEO_NAME

_NUMBERS = re.compile(r"(\S.*?)((?:[\s,;]+\d+)+)")
_NAMED = re.compile(r"(\S.*?\.[A-Za-z0-9]{2,4})[\s,;]+(\S.*)")


def _read(file: LabelFile) -> Found:
    names = _names(file)
    rows: list[tuple[str, str, list[str]]] = []
    for place, line in file.lines():
        if (numbers := _NUMBERS.fullmatch(line)) is not None:
            rows.append((place, numbers[1].strip('"'), re.findall(r"\d+", numbers[2])))
        elif (named := _NAMED.fullmatch(line)) is not None and VIDEO_NAME.fullmatch(named[1]):
            rows.append((place, named[1].strip('"'), [named[2].strip('"')]))
        else:
            raise UserError(f"{file.uri}, {place}: {line!r} is not PATH LABEL, as the lines above")
    if all(len(labels) == 2 and not VIDEO_NAME.fullmatch(path) for _, path, labels in rows):
        rows = [(place, path, labels[1:]) for place, path, labels in rows]  # the first counts the frames
    many, split = any(len(labels) > 1 for _, _, labels in rows), file.split()
    found = []
    for place, path, labels in rows:
        named_labels = [
            names[int(text)] if text.isdigit() and int(text) < len(names) else text for text in labels
        ]
        value: Value = named_labels if many else named_labels[0]
        found.append(Annotation(place, path, {"label": value}, split=split))
    numbered = "" if names else ", so its classes have numbers for names"
    notes = [f"{file.name} has no header: it was read as a list of MMAction2 or SlowFast{numbered}"]
    return Found(found, {"label": many}, splits=split is not None, notes=notes)


def _names(file: LabelFile) -> list[str]:
    for name in file.beside(r"(?i)label_?map.*\.txt")[:1]:
        return [line for _, line in file.sibling(name).lines()]
    return []


def _matches(file: LabelFile) -> bool:
    first = next((line for _, line in file.lines()), "")
    if first[:1] in "{[<":
        return False
    if _NUMBERS.fullmatch(first):
        return True
    named = _NAMED.fullmatch(first)
    return named is not None and bool(VIDEO_NAME.fullmatch(named[1])) and "\t" not in named[1]


FORMATS = (FileFormat("MMAction2 or SlowFast", "PATH LABEL", _matches, _read),)

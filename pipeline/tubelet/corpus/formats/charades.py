"""Charades: ``id, …, actions`` where the actions are ``c092 11.90 21.20;c147 0.00 12.60``."""

from __future__ import annotations

from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation, Found, LabelFile, TableFormat, seconds
from tubelet.corpus.label_table import LabelTable, text_of


def _read(file: LabelFile, table: LabelTable) -> Found:
    names = _classes(file)
    split, found = file.split(), []
    for place, cells in table.rows:
        video, actions = text_of(cells.get("id")), text_of(cells.get("actions")) or ""
        if video is None:
            continue
        for action in filter(None, map(str.strip, actions.split(";"))):
            parts = action.split()
            if len(parts) != 3:
                raise UserError(f"{file.uri}, {place}: {action!r} is not CLASS START END")
            start_s, end_s = (seconds(part, file.uri, place) for part in parts[1:])
            label = names.get(parts[0], parts[0])
            found.append(Annotation(place, video, {"label": label}, None, start_s, end_s, split=split))
        if not actions:
            found.append(Annotation(place, video, {"label": None}, split=split))
    return Found(found, {"label": False}, splits=split is not None)


def _classes(file: LabelFile) -> dict[str, str]:
    """What the class numbers mean, where ``Charades_v1_classes.txt`` lies beside."""
    for name in file.beside(r"(?i)charades.*classes.*\.txt")[:1]:
        pairs = (line.partition(" ") for _, line in file.sibling(name).lines())
        return {number: meaning.strip() for number, _, meaning in pairs}
    return {}


FORMATS = (TableFormat("Charades", ("id", "actions"), _read),)

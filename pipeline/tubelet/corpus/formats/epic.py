"""EPIC-Kitchens-55 and -100: actions with a verb and a noun, in columns ``video_id, start_timestamp, …``.

The classes are named by ``EPIC_100_verb_classes.csv`` and ``EPIC_100_noun_classes.csv`` where they lie
beside; else the annotators' own words are taken.
"""

from __future__ import annotations

import csv
import io

from tubelet.corpus.formats.base import Annotation, Found, LabelFile, TableFormat, seconds
from tubelet.corpus.label_table import LabelTable, text_of

_HEADS = ("verb", "noun")


def _read(file: LabelFile, table: LabelTable) -> Found:
    classes = {head: _classes(file, head) for head in _HEADS}
    split, found = file.split(), []
    for place, cells in table.rows:
        video = text_of(cells.get("video_id"))
        if video is None:
            continue
        values = {
            f"label_{head}": classes[head].get(str(cells.get(f"{head}_class")).strip())
            or text_of(cells.get(head))
            for head in _HEADS
        }
        start_s, end_s = (
            seconds(cells.get(f"{name}_timestamp"), file.uri, place) for name in ("start", "stop")
        )
        trimmed = text_of(cells.get("narration_id"))
        found.append(Annotation(place, video, dict(values), trimmed, start_s, end_s, split=split))
    notes = []
    if not all(classes.values()):
        notes.append(
            f"{file.name}: verbs and nouns are the annotators' words; for the published classes put "
            "EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv beside it"
        )
    return Found(found, {f"label_{head}": False for head in _HEADS}, splits=split is not None, notes=notes)


def _classes(file: LabelFile, head: str) -> dict[str, str]:
    """Names of the classes by their number."""
    for name in file.beside(rf"(?i)epic.*{head}_?classes.*\.csv")[:1]:
        rows = csv.DictReader(io.StringIO(file.sibling(name).text))
        pairs = (
            (row.get("id") or row.get(f"{head}_id"), row.get("key") or row.get("class_key")) for row in rows
        )
        return {str(number).strip(): str(name).strip() for number, name in pairs}
    return {}


FORMATS = (
    TableFormat("EPIC-Kitchens", ("video_id", "start_timestamp", "stop_timestamp", "verb", "noun"), _read),
)

"""Something-Something v2: a JSON list of ``{"id", "label", "template"}``; the class is the template."""

from __future__ import annotations

import re

from tubelet.corpus.formats.base import Annotation, Found, LabelFile, TableFormat
from tubelet.corpus.label_table import LabelTable, text_of


def _read(file: LabelFile, table: LabelTable) -> Found:
    found = []
    for place, cells in table.rows:
        video, template = text_of(cells.get("id")), text_of(cells.get("template"))
        if video is not None:
            label = None if template is None else re.sub(r"[\[\]]", "", template)
            found.append(Annotation(place, video, {"label": label}, split=file.split()))
    return Found(found, {"label": False}, splits=file.split() is not None)


FORMATS = (TableFormat("Something-Something v2", ("id", "template"), _read),)

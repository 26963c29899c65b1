"""Kinetics-400, -600 and -700: ``label,youtube_id,time_start,time_end,split``.

A file ``ID_000010_000020.mp4`` is the clip itself; of ``ID.mp4``, the whole film, the clip is a segment.
"""

from __future__ import annotations

from tubelet.corpus.formats.base import Annotation, Found, LabelFile, TableFormat, seconds
from tubelet.corpus.label_table import LabelTable, text_of


def _read(file: LabelFile, table: LabelTable) -> Found:
    found = []
    of_name = file.split()
    for place, cells in table.rows:
        video = text_of(cells.get("youtube_id"))
        if video is None:
            continue
        start_s, end_s = (seconds(cells.get(name), file.uri, place) for name in ("time_start", "time_end"))
        trimmed = None if start_s is None or end_s is None else f"{video}_{int(start_s):06d}_{int(end_s):06d}"
        found.append(
            Annotation(
                place,
                video,
                {"label": text_of(cells.get("label"))},
                trimmed,
                start_s,
                end_s,
                split=text_of(cells.get("split")) or of_name,
            )
        )
    return Found(found, {"label": False}, splits=any(one.split for one in found))


FORMATS = (TableFormat("Kinetics", ("youtube_id", "time_start", "time_end"), _read),)

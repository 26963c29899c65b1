"""ActivityNet, HACS, THUMOS and Kinetics as JSON: ``{"database": {ID: {"subset", "annotations"}}}``."""

from __future__ import annotations

import json
from typing import Any

from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation, FileFormat, Found, LabelFile


def _read(file: LabelFile) -> Found:
    document = json.loads(file.text)
    database = document.get("database") or document
    found = []
    for video, entry in database.items():
        try:
            found += _of_video(str(video), entry)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"{file.uri}, video {video!r}: its subset or annotations are damaged: {error!r}"
            ) from error
    return Found(found, {"label": False}, splits=any(one.split for one in found))


def _of_video(video: str, entry: dict[str, Any]) -> list[Annotation]:
    place, split = f"video {video!r}", entry.get("subset")
    annotations = entry.get("annotations") or []
    if isinstance(annotations, dict):
        annotations = [annotations]
    found = []
    for one in annotations:
        start_s, end_s = map(float, one.get("segment") or one.get("timestamps"))
        trimmed = f"{video}_{int(start_s):06d}_{int(end_s):06d}"
        values: dict[str, Any] = {"label": str(one["label"])}
        found.append(Annotation(place, video, values, trimmed, start_s, end_s, split=split))
    return found or [Annotation(place, video, {"label": None}, split=split)]


def _matches(file: LabelFile) -> bool:
    head = file.text[:4096].lstrip()
    return head.startswith("{") and ('"database"' in file.text or '"subset"' in head)


FORMATS = (FileFormat("ActivityNet", '{"database": {ID: {"subset", "annotations"}}}', _matches, _read),)

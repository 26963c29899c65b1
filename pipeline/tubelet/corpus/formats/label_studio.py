"""Label Studio's JSON exports, whole and ``JSON-MIN``: choices for a video, and labels on its timeline.

The tag of the labelling interface that a result comes from is a head of its own (``label_<tag>``) where there
are several; one alone is ``label``. Timelines count frames, at the rate the interface showed them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation, FileFormat, Found, LabelFile
from tubelet.corpus.label_source import Value

_VIDEO_KEYS = ("video", "video_url", "url", "file_upload", "image")
# What the interface counts by, unless its <Video frameRate=…> says otherwise.
_FRAMES_PER_S = 24.0
_Part = tuple[str, list[str], float | None, float | None]


def _read(file: LabelFile) -> Found:
    found: list[tuple[str, str, _Part]] = []
    timelines = False
    for number, task in enumerate(json.loads(file.text), 1):
        place = f"task {task.get('id', number)}"
        video = _video(task, file.uri, place)
        data = _data(task)
        rate = float(data.get("fps") or data.get("frame_rate") or _FRAMES_PER_S)
        for result in _results(task):
            for part in _parts(result, rate):
                timelines |= "timelinelabels" in (result.get("value") or {})
                found.append((place, video, part))
    heads = sorted({tag for _, _, (tag, *_) in found})
    column = {tag: "label" if len(heads) == 1 else f"label_{tag}" for tag in heads}
    many = {column[tag]: any(len(part[1]) > 1 for _, _, part in found if part[0] == tag) for tag in heads}
    notes = [f"{file.name}: times of the timeline are taken at {_FRAMES_PER_S:g} frames per second"]
    return Found(
        list(_gathered(found, column, many)), many or {"label": False}, notes=notes if timelines else []
    )


def _gathered(
    found: list[tuple[str, str, _Part]], column: dict[str, str], many: dict[str, bool]
) -> Iterator[Annotation]:
    """One annotation per video and part, with the labels of all tags."""
    rows: dict[tuple[str, float | None, float | None], tuple[str, dict[str, Value]]] = {}
    for place, video, (tag, labels, start_s, end_s) in found:
        _, values = rows.setdefault((video, start_s, end_s), (place, {}))
        name = column[tag]
        values[name] = labels if many[name] else labels[0]
    for (video, start_s, end_s), (place, values) in rows.items():
        yield Annotation(place, video, values, None, start_s, end_s)


def _data(task: dict[str, Any]) -> dict[str, Any]:
    """What a task is about; JSON-MIN has it beside the rest."""
    data = task.get("data")
    return data if isinstance(data, dict) else task


def _video(task: dict[str, Any], uri: str, place: str) -> str:
    data = _data(task)
    for name in _VIDEO_KEYS:
        if isinstance(data.get(name), str):
            # The server's own names: ``/data/local-files/?d=clips/a.mp4``, ``/data/upload/3/1234abcd-a.mp4``.
            path = str(data[name]).partition("?d=")[2] or str(data[name])
            upload = path.rpartition("/")[2] if "/upload/" in path else ""
            return upload.partition("-")[2] if len(upload.partition("-")[0]) == 8 else path
    raise UserError(
        f"{uri}, {place}: no video is named; its data has {', '.join(map(repr, data)) or 'nothing'}"
    )


def _results(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of the newest annotation that was not cancelled; of JSON-MIN, its fields."""
    done = [
        one
        for one in task.get("annotations") or task.get("completions") or []
        if not one.get("was_cancelled")
    ]
    if done:
        newest = max(done, key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
        return list(newest.get("result") or [])
    found = []
    for tag, value in task.items():
        if tag in _MIN_OTHERS or tag in _VIDEO_KEYS:
            continue
        if isinstance(value, str):
            found.append({"from_name": tag, "value": {"choices": [value]}})
        elif isinstance(value, dict) and "choices" in value:
            found.append({"from_name": tag, "value": value})
        elif isinstance(value, list):
            found += [{"from_name": tag, "value": item} for item in value if isinstance(item, dict)]
    return found


_MIN_OTHERS = (
    "id",
    "annotator",
    "annotation_id",
    "created_at",
    "updated_at",
    "lead_time",
    "data",
    "annotations",
)


def _parts(result: dict[str, Any], rate: float) -> Iterator[_Part]:
    tag, value = str(result.get("from_name") or "label"), result.get("value") or {}
    if value.get("choices"):
        yield tag, list(map(str, value["choices"])), None, None
    if value.get("taxonomy"):
        yield tag, [" / ".join(map(str, path)) for path in value["taxonomy"]], None, None
    for span in value.get("ranges") or []:
        if value.get("timelinelabels"):
            labels = list(map(str, value["timelinelabels"]))
            yield tag, labels, (float(span["start"]) - 1) / rate, float(span["end"]) / rate
    if value.get("labels") and "start" in value and "end" in value:
        yield tag, list(map(str, value["labels"])), float(value["start"]), float(value["end"])


def _matches(file: LabelFile) -> bool:
    head = file.text[:65536]
    if not head.lstrip().startswith("["):
        return False
    return '"annotations"' in head or '"completions"' in head or '"annotation_id"' in head


FORMATS = (FileFormat("Label Studio", '[{"data": {"video"}, "annotations": [{"result"}]}]', _matches, _read),)

"""AVA: lines ``video,timestamp,x1,y1,x2,y2,action,person`` without a header.

What people do in the second around a timestamp is a segment with several labels; boxes and persons are left
out. The actions are named by ``ava_action_list….pbtxt`` where it lies beside.
"""

from __future__ import annotations

import csv
import re

from tubelet.corpus.formats.base import Annotation, FileFormat, Found, LabelFile, seconds

_AROUND_S = 0.5
_NUMBER = re.compile(r"\d+(\.\d+)?")
_ACTION = re.compile(r'name:\s*"([^"]+)"\s+(?:label_)?id:\s*(\d+)')


def _read(file: LabelFile) -> Found:
    names = _actions(file)
    moments: dict[tuple[str, float], list[str]] = {}
    places: dict[tuple[str, float], str] = {}
    for number, cells in enumerate(csv.reader(file.text.splitlines()), 1):
        if not cells:
            continue
        time_s = seconds(cells[1], file.uri, f"line {number}") or 0.0
        actions = moments.setdefault((cells[0], time_s), [])
        places.setdefault((cells[0], time_s), f"line {number}")
        action = names.get(cells[6].strip(), cells[6].strip()) if len(cells) > 6 else ""
        if action and action not in actions:
            actions.append(action)
    split = file.split()
    found = [
        Annotation(
            places[video, time_s],
            video,
            {"label": actions},
            None,
            max(time_s - _AROUND_S, 0.0),
            time_s + _AROUND_S,
            split=split,
        )
        for (video, time_s), actions in moments.items()
    ]
    return Found(found, {"label": True}, splits=split is not None)


def _actions(file: LabelFile) -> dict[str, str]:
    for name in file.beside(r"(?i)ava_action_list.*\.pbtxt")[:1]:
        return {number: action for action, number in _ACTION.findall(file.sibling(name).text)}
    return {}


def _matches(file: LabelFile) -> bool:
    cells = next(csv.reader(file.text[:4096].splitlines()), [])
    numbers = [cell.strip() for cell in cells[1:6]]
    return len(cells) in (7, 8) and all(_NUMBER.fullmatch(cell) for cell in numbers)


FORMATS = (FileFormat("AVA", "video,timestamp,x1,y1,x2,y2,action_id,person_id", _matches, _read),)

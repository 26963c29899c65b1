"""People's corrections of predictions: they win over all other labels, and the newest over the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tubelet import storage
from tubelet.corpus.formats.base import Annotation
from tubelet.corpus.label_source import LabelRow, Segment, Value
from tubelet.corpus.manifest import key_of
from tubelet.storage import ObjectInfo


class Corrections:
    """Corrections by key, URI and path.

    One with a key and a URI is found by either: a bucket that was copied keeps its keys, and a manifest of
    another folder, in which the same video has another key, has its URI.

    Attributes:
        matched: how many of them concern an object that was looked up.
        count: how many there are.
    """

    def __init__(self, annotations: Iterable[Annotation]) -> None:
        self._by_name: dict[str, list[Annotation]] = {}
        self.matched = self.count = 0
        for one in annotations:
            self.count += 1
            names = {one.key, storage.normalise_uri(one.uri) if one.uri else None}
            for name in names - {None} or {one.path}:
                self._by_name.setdefault(str(name), []).append(one)

    def apply(self, info: ObjectInfo, row: LabelRow) -> LabelRow:
        """``row`` as it is after the corrections of its video."""
        if not self._by_name:
            return row
        names = (key_of(info.path), info.uri, info.path)
        by_id = {id(one): one for name in names for one in self._by_name.get(name, ())}
        found = list(by_id.values())
        self.matched += len(found)
        for one in sorted(found, key=lambda one: str(one.at)):
            row = corrected(row, one)
        return row


def corrected(row: LabelRow, one: Annotation) -> LabelRow:
    """``row`` after one correction; one that concerns a part which has no labels yet makes it a segment."""
    row = replace(row, named=True)
    if one.start_s is None and one.end_s is None:
        return replace(row, values=_values(row.values, one.values), corrected_at=one.at)
    segments = list(row.segments)
    for number, segment in enumerate(segments):
        if not segment.in_frames and segment.is_at(one.start_s, one.end_s):
            segments[number] = replace(
                segment, values=_values(segment.values, one.values), corrected_at=one.at
            )
            break
    else:
        segments.append(Segment(one.start_s, one.end_s, _values({}, one.values), corrected_at=one.at))
    return replace(row, segments=tuple(segments))


def _values(before: dict[str, Value], after: dict[str, Value]) -> dict[str, Value]:
    """One without any label leaves the clip out; else empty cells leave the other heads as they are."""
    if not any(after.values()):
        return dict.fromkeys(before | after)
    return before | {name: value for name, value in after.items() if value}

"""CVAT for video 1.1: an XML file with ``<track label>`` whose boxes say in which frames it is seen.

Each run of frames in which a track is seen is a segment with the track's label; tags of whole jobs are the
video's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation, FileFormat, Found, LabelFile


def _read(file: LabelFile) -> Found:
    if "<!DOCTYPE" in file.text or "<!ENTITY" in file.text:
        raise UserError(f"{file.uri} declares a document type, which no export of CVAT does: export it again")
    try:
        root = ElementTree.fromstring(file.data)  # noqa: S314  entities are refused above
    except ElementTree.ParseError as error:
        raise UserError(f"{file.uri} is broken XML: {error}") from error
    sources = _sources(root)
    if not sources:
        raise UserError(f"{file.uri} does not say which video it is of (<meta>…<source>): export it again")
    found = []
    for number, track in enumerate(root.iter("track")):
        place = f"track {track.get('id', number)}"
        video = sources.get(track.get("task_id") or "", next(iter(sources.values())))
        for first, last in _runs(track):
            label = {"label": track.get("label")}
            found.append(Annotation(place, video, dict(label), None, first, last + 1, in_frames=True))
    return Found(found, {"label": False})


def _sources(root: ElementTree.Element) -> dict[str, str]:
    """The video of each task; an export of one task has one."""
    found = {}
    for task in root.iter("task"):
        source = task.findtext("source") or task.findtext("name")
        if source:
            found[task.findtext("id") or ""] = source.strip()
    if not found and (alone := root.findtext("meta/source") or root.findtext("meta/job/source")):
        found[""] = alone.strip()
    return found


def _runs(track: ElementTree.Element) -> Iterator[tuple[int, int]]:
    """First and last frame of each stretch in which the track is seen."""
    first = last = None
    for shape in sorted(track, key=lambda one: int(one.get("frame") or 0)):
        frame = int(shape.get("frame") or 0)
        if shape.get("outside") == "1":
            if first is not None:
                # Seen from its last own frame up to the one before it was marked as gone.
                yield first, max(first, frame - 1)
            first = last = None
        else:
            first = frame if first is None else first
            last = frame
    if first is not None and last is not None:
        yield first, last


def _matches(file: LabelFile) -> bool:
    head = file.text[:65536].lstrip()
    return head.startswith("<") and "<annotations" in head


FORMATS = (FileFormat("CVAT for video", "<annotations><track label><box frame>", _matches, _read),)

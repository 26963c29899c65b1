"""What FFmpeg does not say of Matroska and WebM files (RFC 9559).

The part of a picture that is shown (PixelCrop*), its pixels' aspect, and whether files were joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from tubelet.video.mp4 import Readable

_EBML, _SEGMENT, _CLUSTER, _TRACKS, _TRACK = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE
_TRACK_TYPE, _VIDEO, _PIXEL_WIDTH, _PIXEL_HEIGHT = 0x83, 0xE0, 0xB0, 0xBA
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT, _UNKNOWN_UNIT = 0x54B0, 0x54BA, 0x54B2, 4
_CROP_BOTTOM, _CROP_TOP, _CROP_LEFT, _CROP_RIGHT = 0x54AA, 0x54BB, 0x54CC, 0x54DD
# A list of tracks is kilobytes; codec headers (fonts are attachments, elsewhere) at worst some more.
_MAX_TRACKS_BYTES = 16 << 20
_MAX_ELEMENTS = 64


@dataclass(frozen=True)
class Margins:
    """Rows and columns of the coded picture that are not shown, and the aspect of the pixels that are."""

    top: int
    bottom: int
    left: int
    right: int
    sample_aspect: Fraction


def shown_margins(file: Readable, number: int) -> Margins | None:
    """What is cut from the ``number``-th picture track; None where nothing is, or the file is not plain."""
    tracks = _read_tracks(file)
    if tracks is None:
        return None
    found = [entry for kind, entry in _elements(tracks) if kind == _TRACK]
    videos = [dict(_elements(entry)) for entry in found]
    videos = [fields for fields in videos if _number(fields.get(_TRACK_TYPE)) == 1 and _VIDEO in fields]
    return _margins(dict(_elements(videos[number][_VIDEO]))) if number < len(videos) else None


def is_joined(file: Readable) -> bool:
    """Whether another file follows where the first one ends, whose header then tells of one part only."""
    position = 0
    for _ in range(_MAX_ELEMENTS):
        file.seek(position)
        kind, size, length = _head(file.read(12))
        if not length or (kind == _EBML and position):
            return bool(length)
        position += length + size
    return False


def _margins(video: dict[int, bytes]) -> Margins | None:
    top, bottom = _number(video.get(_CROP_TOP)), _number(video.get(_CROP_BOTTOM))
    left, right = _number(video.get(_CROP_LEFT)), _number(video.get(_CROP_RIGHT))
    width = _number(video.get(_PIXEL_WIDTH)) - left - right
    height = _number(video.get(_PIXEL_HEIGHT)) - top - bottom
    if not top + bottom + left + right or min(width, height) < 1:
        return None
    aspect = Fraction(1)
    display_width, display_height = _number(video.get(_DISPLAY_WIDTH)), _number(video.get(_DISPLAY_HEIGHT))
    stated = display_width and display_height and _number(video.get(_DISPLAY_UNIT)) != _UNKNOWN_UNIT
    # Tools that add a crop leave the size to display that was there: it then means the whole picture.
    whole = (_number(video.get(_PIXEL_WIDTH)), _number(video.get(_PIXEL_HEIGHT)))
    if stated and (display_width, display_height) != whole:
        aspect = Fraction(display_width * height, display_height * width)
    return Margins(top, bottom, left, right, aspect)


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")


def _read_tracks(file: Readable) -> bytes | None:
    """The list of tracks, where it comes before the pictures."""
    position = 0
    for _ in range(_MAX_ELEMENTS):
        file.seek(position)
        head = file.read(12)
        kind, size, length = _head(head)
        if not length or kind == _CLUSTER:
            return None
        position += length
        if kind == _TRACKS:
            file.seek(position)
            data = file.read(min(size, _MAX_TRACKS_BYTES))
            return data if len(data) == size else None
        if kind != _SEGMENT:
            position += size
    return None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        kind, size, length = _head(data[position : position + 12])
        if not length:
            return
        position += length
        yield kind, data[position : position + size]
        position += size


def _head(data: bytes) -> tuple[int, int, int]:
    """(id, size, length of both) of an element; length 0 where there is none."""
    if not data or not data[0] >> 4:
        return 0, 0, 0
    id_length = 9 - data[0].bit_length()
    rest = data[id_length:]
    if not rest or not rest[0]:
        return 0, 0, 0
    size_length = 9 - rest[0].bit_length()
    if len(rest) < size_length:
        return 0, 0, 0
    size = int.from_bytes(rest[:size_length], "big") & ((1 << 7 * size_length) - 1)
    return int.from_bytes(data[:id_length], "big"), size, id_length + size_length

"""Presentation offsets from an MP4 or MOV index (ISO/IEC 14496-12, 8.6.1.3 `ctts`).

FFmpeg's index of such a file carries decode times only. Read together with `ctts`, it gives the
presentation order of a whole video without touching its pictures.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

# A box this large is no index of a video that anybody can hold: stop rather than read it.
_MAX_MOOV_BYTES = 1 << 29
_VISUAL_ENTRY_BYTES = 78


class Readable(Protocol):
    """The part of a file that is needed here."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes, all that is left where negative."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to ``offset`` bytes from ``whence``; returns the position in bytes from the start."""


class Index:
    """The `moov` box of a file.

    Args:
        file: the whole file, at any position.
    """

    def __init__(self, file: Readable) -> None:
        self._moov: memoryview | None
        try:
            self._moov = _read_moov(file)
        except (struct.error, ValueError):
            self._moov = None

    def presentation_offsets(self, track_id: int, samples: int) -> npt.NDArray[np.int64] | None:
        """What to add to each sample's decode time, in the track's time base, up to one constant.

        Returns:
            int64 (samples,), or None where the index does not describe the whole track plainly (fragmented,
            compressed or broken index).
        """
        try:
            if self._moov is None:
                return None
            boxes = dict(_boxes(self._moov))
            if b"mvex" in boxes or b"cmov" in boxes:
                return None
            trak = self._trak(track_id)
            return None if trak is None else _offsets(trak, samples)
        except (struct.error, ValueError):
            return None

    def clean_aperture(self, track_id: int) -> Aperture | None:
        """The part of the coded picture that is shown (12.1.4, `clap`), None where all of it is."""
        # Hardly any file has one: looking for its name is cheaper than for its place.
        if self._moov is None or self._moov.obj.find(b"clap") < 0:  # type: ignore[attr-defined]
            return None
        try:
            trak = self._trak(track_id)
            stsd = None if trak is None else _child(trak, b"mdia", b"minf", b"stbl", b"stsd")
            entry = None if stsd is None else next(_boxes(stsd[8:]), None)
            clap = None if entry is None else _child(entry[1][_VISUAL_ENTRY_BYTES:], b"clap")
            return None if clap is None else _aperture(clap)
        except (struct.error, ValueError, ZeroDivisionError):
            return None

    def _trak(self, track_id: int) -> memoryview | None:
        assert self._moov is not None
        traks = (body for kind, body in _boxes(self._moov) if kind == b"trak")
        return next((body for body in traks if _track_id(body) == track_id), None)


class Aperture(NamedTuple):
    """Size of the shown part, and how far its centre lies from that of the coded picture, in pixels."""

    width: Fraction
    height: Fraction
    right: Fraction
    down: Fraction


def _aperture(clap: memoryview) -> Aperture:
    n = struct.unpack(">IIIIiIiI", clap[:32])
    return Aperture(*(Fraction(n[i], n[i + 1]) for i in range(0, 8, 2)))


def _read_moov(file: Readable) -> memoryview | None:
    position = 0
    while True:
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return None
        size, kind = struct.unpack(">I4s", head[:8])
        skip = 8
        if size == 1:
            (size,), skip = struct.unpack(">Q", head[8:16]), 16
        if kind == b"moov":
            if not skip < size <= _MAX_MOOV_BYTES:
                return None
            file.seek(position + skip)
            return memoryview(_read_exactly(file, size - skip))
        if size < skip:
            return None
        position += size


def _read_exactly(file: Readable, size: int) -> bytes:
    parts = []
    while size > 0:
        part = file.read(size)
        if not part:
            raise ValueError("the index is cut short")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        skip = 8
        if size == 1:
            (size,), skip = struct.unpack(">Q", data[position + 8 : position + 16]), 16
        if size == 0:
            size = len(data) - position
        if size < skip:
            raise ValueError(f"a box of {size} bytes")
        yield kind, data[position + skip : position + size]
        position += size


def _child(data: memoryview, *path: bytes) -> memoryview | None:
    for name in path:
        found = next((body for kind, body in _boxes(data) if kind == name), None)
        if found is None:
            return None
        data = found
    return data


def _track_id(trak: memoryview) -> int | None:
    tkhd = _child(trak, b"tkhd")
    if tkhd is None:
        return None
    (track_id,) = struct.unpack(">I", tkhd[20:24] if tkhd[0] == 1 else tkhd[12:16])
    return int(track_id)


def _offsets(trak: memoryview, samples: int) -> npt.NDArray[np.int64] | None:
    stbl = _child(trak, b"mdia", b"minf", b"stbl")
    if stbl is None:
        return None
    ctts = _child(stbl, b"ctts")
    if ctts is None:
        return np.zeros(samples, np.int64)
    (entries,) = struct.unpack(">I", ctts[4:8])
    pairs = np.frombuffer(ctts[8 : 8 + 8 * entries], ">i4").reshape(-1, 2).astype(np.int64)
    if len(pairs) != entries or (pairs[:, 0] < 0).any() or pairs[:, 0].sum() > 2 * samples + 1024:
        return None
    offsets = np.repeat(pairs[:, 1], pairs[:, 0])
    if len(offsets) < samples:
        return None
    return offsets[:samples]

"""What an object holds that is no video, told from its bytes."""

from __future__ import annotations

import re
from enum import StrEnum


class Content(StrEnum):
    """What content was recognised as."""

    STILL = "still"
    """One picture (JPEG, PNG, WebP, AVIF, HEIC, a GIF of one frame)."""
    AUDIO = "audio"
    """Sound without a picture track (a cover is no picture track)."""
    SUBTITLE = "subtitle"
    TEXT = "text"
    """Readable text of any kind: notes, tables, JSON, XML, playlists."""
    ARCHIVE = "archive"
    """Packed files (ZIP, tar, gzip and their like)."""
    DOCUMENT = "document"
    DATA = "data"
    """Arrays, tables and weights in a binary format (NumPy, HDF5, Parquet, SQLite, pickle)."""
    EMPTY = "empty"
    """Not one byte."""


# Bytes that tell: enough for the name of a tar archive's format, which stands at 257.
HEAD_BYTES = 4096

_ANY = ord("?")
_MAGIC: tuple[tuple[int, bytes, Content], ...] = (
    (0, b"PK\x03\x04", Content.ARCHIVE),
    (0, b"PK\x05\x06", Content.ARCHIVE),
    (0, b"\x1f\x8b\x08", Content.ARCHIVE),
    (0, b"BZh", Content.ARCHIVE),
    (0, b"\xfd7zXZ\x00", Content.ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", Content.ARCHIVE),
    (0, b"Rar!\x1a\x07", Content.ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", Content.ARCHIVE),
    (0, b"\x04\x22\x4d\x18", Content.ARCHIVE),
    (257, b"ustar", Content.ARCHIVE),
    (0, b"%PDF-", Content.DOCUMENT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Content.DOCUMENT),
    (0, b"\x93NUMPY", Content.DATA),
    (0, b"\x89HDF\r\n\x1a\n", Content.DATA),
    (0, b"PAR1", Content.DATA),
    (0, b"ARROW1", Content.DATA),
    (0, b"SQLite format 3\x00", Content.DATA),
    (0, b"MATLAB 5.0", Content.DATA),
    (0, b"\x80\x02", Content.DATA),
    (0, b"\x80\x03", Content.DATA),
    (0, b"\x80\x04\x95", Content.DATA),
    (0, b"\x80\x05\x95", Content.DATA),
    (0, b"\xff\xd8\xff", Content.STILL),
    (0, b"\x89PNG\r\n\x1a\n", Content.STILL),
    (0, b"II*\x00", Content.STILL),
    (0, b"MM\x00*", Content.STILL),
    (0, b"ID3", Content.AUDIO),
    (0, b"fLaC", Content.AUDIO),
    (0, b"RIFF????WAVE", Content.AUDIO),
)
_SUBTITLE = re.compile(
    r"\A\s*(WEBVTT|\[Script Info\]|\d+\s*\n\s*\d+:\d\d:\d\d[,.]\d+ +--> |\{\d+\}\{\d*\}|# VobSub index file)"
)
# Control characters that text has: tab, line feed, form feed, carriage return, escape.
_TEXT_CONTROLS = frozenset(b"\t\n\x0c\r\x1b")
_UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
# Brands of ISO files whose main picture is a still (ISO/IEC 23008-12, AVIF); `avis` and `msf1` mean a film.
STILL_BRANDS = frozenset({b"avif", b"mif1", b"mif2", b"heic", b"heix", b"heim", b"heis", b"jpeg", b"avci"})
_SEQUENCE_BRANDS = frozenset({b"avis", b"msf1", b"hevc", b"hevx", b"avcs"})


def recognise(head: bytes) -> Content | None:
    """What the first :data:`HEAD_BYTES` bytes of an object say it is; None where they do not tell."""
    if not head:
        return Content.EMPTY
    for position, magic, content in _MAGIC:
        part = head[position : position + len(magic)]
        if len(part) == len(magic) and all(m in (b, _ANY) for b, m in zip(part, magic, strict=True)):
            return content
    if major_brand(head) in STILL_BRANDS:
        return Content.STILL
    text = _as_text(head)
    if text is None:
        return None
    return Content.SUBTITLE if _SUBTITLE.match(text) else Content.TEXT


def major_brand(head: bytes) -> bytes | None:
    """The brand that an ISO file (MP4, HEIF) names first, None where it is no such file."""
    return head[8:12] if head[4:8] == b"ftyp" else None


def may_hold_items(head: bytes) -> bool:
    """Whether an ISO file may hold pictures as items beside its tracks (HEIF, AVIF)."""
    return major_brand(head) in STILL_BRANDS | _SEQUENCE_BRANDS


def _as_text(head: bytes) -> str | None:
    """Decoded text, None where bytes are no text in UTF-8, UTF-16 or an encoding of one byte a character."""
    encoding = _UTF16.get(head[:2])
    if encoding is not None:
        text = head[2 : len(head) & ~1].decode(encoding, "replace")
        odd = sum(ord(c) < 32 and ord(c) not in _TEXT_CONTROLS for c in text)
        return None if odd else text
    if any(byte < 32 and byte not in _TEXT_CONTROLS for byte in head):
        return None
    try:
        return head.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start >= len(head) - 3:  # a character cut at the end of the head
            return head[: error.start].decode("utf-8")
    # Latin-1 and its like: mostly letters of ASCII.
    high = sum(byte >= 127 for byte in head)
    return head.decode("latin-1") if high <= len(head) // 4 else None

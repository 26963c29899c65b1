"""What a codec's packets say about themselves: can decoding begin here, may pictures be left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

# NAL unit types of H.264 (ITU-T H.264, table 7-1) and H.265 (ITU-T H.265, table 7-1).
_H264_SLICE, _H264_IDR, _H264_SEI = 1, 5, 6
_H265_IRAP = range(16, 24)
_H265_SLICES = range(32)
_SEI_RECOVERY_POINT = 6


# Codecs in which every packet stands alone, so that decode order is presentation order.
INTRA_ONLY = frozenset(
    {"mjpeg", "prores", "dnxhd", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "jpeg2000"}
)
# Codecs whose decoders complain of a picture that lacks what it refers to: a false entry point is found out.
_COMPLAINING = frozenset({"av1", "vvc"})


def nal_units(codec: Any, data: bytes) -> list[bytes]:
    """The NAL units of a packet, without start codes or lengths."""
    prefix = _prefix_bytes(codec.name, codec.extradata or b"")
    return _length_prefixed(data, prefix) if prefix else _split_start_codes(data)


def _prefix_bytes(name: str, extra: bytes) -> int:
    """Bytes of the length before each unit (from avcC, hvcC), 0 where start codes part them."""
    at = 4 if name == "h264" else 21
    return (extra[at] & 3) + 1 if extra[:1] == b"\x01" and len(extra) > at else 0


def _split_start_codes(data: bytes) -> list[bytes]:
    return [unit for unit in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]


def _length_prefixed(data: bytes, prefix: int) -> list[bytes]:
    units, position = [], 0
    while position + prefix < len(data):
        size = int.from_bytes(data[position : position + prefix], "big")
        units.append(data[position + prefix : position + prefix + size])
        position += prefix + size
    return [unit for unit in units if unit]


def is_entry_point(name: str, codec: Any, packet: Any) -> bool:
    """Whether decoding from this packet on gives exact pictures of all that is presented from it on.

    The container's keyframe flag alone does not promise that: files without a sync table flag every packet,
    and a gradual refresh is flagged where it begins. Where packets do not tell and the decoder would show a
    difference to a picture that is not there, only the first packet is an entry point.
    """
    if name in ("h264", "hevc"):
        units = nal_units(codec, bytes(packet))
        return _h264_entry(units) if name == "h264" else _h265_entry(units)
    if name in _INTRA_TESTS:
        return _INTRA_TESTS[name](bytes(memoryview(packet)[:_HEAD_BYTES]))
    return name in INTRA_ONLY or name in _COMPLAINING


def _bits(data: bytes, start: int, count: int) -> int:
    """``count`` bits from bit ``start``, most significant first; bits past the end are ones."""
    end = start + count
    part = data[start // 8 : (end + 7) // 8]
    part += b"\xff" * ((end + 7) // 8 - start // 8 - len(part))
    return int.from_bytes(part, "big") >> (-end % 8) & ((1 << count) - 1)


def _after(data: bytes, start_code: bytes) -> bytes:
    """What follows a start code; ones where there is none."""
    at = data.find(start_code)
    return b"\xff" * 4 if at < 0 else data[at + len(start_code) :]


def _vp9_is_intra(data: bytes) -> bool:
    reserved = data[0] & 0b0011_0000 == 0b0011_0000  # profile 3 has one more bit
    return not data[0] & (0b0010 if reserved else 0b0100)


def _h263_is_intra(data: bytes) -> bool:
    if _bits(data, 35, 3) != 7:
        return _bits(data, 38, 1) == 0
    return _bits(data, 59 if _bits(data, 38, 3) == 1 else 41, 3) == 0  # PLUSPTYPE


def _flv1_is_intra(data: bytes) -> bool:
    size_bits = {0: 16, 1: 32}.get(_bits(data, 30, 3), 0)
    return _bits(data, 33 + size_bits, 2) == 0


# Whether a packet's picture refers to none, by its head: ISO/IEC 14496-2 (vop_coding_type), 13818-2
# (picture_coding_type), ITU-T H.263, RFC 9043 (the first bit, at even odds), Theora I, VP8, VP9.
_HEAD_BYTES = 4096
_INTRA_TESTS: dict[str, Callable[[bytes], bool]] = {
    "vp8": lambda data: not data[0] & 1,
    "vp9": _vp9_is_intra,
    "mpeg4": lambda data: _bits(_after(data, b"\0\0\1\xb6"), 0, 2) == 0,
    "mpeg1video": lambda data: _bits(_after(data, b"\0\0\1\0"), 10, 3) == 1,
    "mpeg2video": lambda data: _bits(_after(data, b"\0\0\1\0"), 10, 3) == 1,
    "h263": _h263_is_intra,
    "flv1": _flv1_is_intra,
    "msmpeg4v2": lambda data: _bits(data, 0, 2) == 0,
    "msmpeg4v3": lambda data: _bits(data, 0, 2) == 0,
    "wmv1": lambda data: _bits(data, 0, 2) == 0,
    "wmv2": lambda data: _bits(data, 0, 1) == 0,
    "theora": lambda data: _bits(data, 0, 2) == 0,
    "ffv1": lambda data: _bits(data, 0, 16) >= 0x7F80,
}


def _h264_entry(units: list[bytes]) -> bool:
    for unit in units:
        kind = unit[0] & 31
        if kind == _H264_IDR:
            return True
        if kind == _H264_SEI and _refresh_length(unit) == 0:
            return True
        if kind == _H264_SLICE:
            return False
    return False


def _h265_entry(units: list[bytes]) -> bool:
    kinds = [unit[0] >> 1 & 63 for unit in units]
    return next((kind in _H265_IRAP for kind in kinds if kind in _H265_SLICES), False)


def _refresh_length(sei: bytes) -> int | None:
    """recovery_frame_cnt of a recovery point message (ITU-T H.264, D.1.8), or None where there is none."""
    data = sei[1:].replace(b"\0\0\3", b"\0\0")
    position = 0
    while position + 2 < len(data):
        kind = size = 0
        while position < len(data) and data[position] == 255:
            kind, position = kind + 255, position + 1
        kind, position = kind + data[position], position + 1
        while position < len(data) and data[position] == 255:
            size, position = size + 255, position + 1
        if position >= len(data):
            return None
        size, position = size + data[position], position + 1
        if kind == _SEI_RECOVERY_POINT:
            return _exp_golomb(data[position : position + size])
        position += size
    return None


def _exp_golomb(data: bytes) -> int:
    bits = "".join(f"{byte:08b}" for byte in data)
    zeros = len(bits) - len(bits.lstrip("0"))
    return int(bits[zeros : 2 * zeros + 1] or "1", 2) - 1


def reference_test(name: str, codec: Any) -> Callable[[Any], bool] | None:
    """A test for packets whose picture others may refer to; without the rest, all others stay bit-identical.

    None where packets of this stream do not tell. In H.265 "not referred to" holds within one temporal layer
    only, so a stream must have a single one.
    """
    extra = codec.extradata or b""
    prefix = _prefix_bytes(name, extra)
    if name == "h264":
        return partial(_any_unit, _h264_referred_to, prefix)
    if name == "hevc" and _single_temporal_layer(codec):
        return partial(_any_unit, _h265_referred_to, prefix)
    return None


def _h264_referred_to(head: int) -> bool:
    """nal_ref_idc is 0 in slices (types 1 and 5) of pictures that nothing refers to (7.4.1)."""
    return head & 0b0110_0000 != 0 or head & 31 not in (_H264_SLICE, 6, 9, 12)


def _h265_referred_to(head: int) -> bool:
    """Even types below 16 are sub-layer non-reference pictures; 35, 38 to 40 are no pictures (table 7-1)."""
    kind = head >> 1 & 63
    return not (kind < 16 and kind % 2 == 0) and kind not in (35, 38, 39, 40)


def _any_unit(test: Callable[[int], bool], prefix: int, packet: Any) -> bool:
    """Whether ``test`` holds for the first byte of any NAL unit of a packet."""
    data = bytes(packet)
    if not prefix:
        return any(test(unit[0]) for unit in _split_start_codes(data))
    position, size = 0, len(data)
    while position + prefix < size:
        if test(data[position + prefix]):
            return True
        position += prefix + int.from_bytes(data[position : position + prefix], "big")
    return False


def _single_temporal_layer(codec: Any) -> bool:
    extra = codec.extradata or b""
    if extra[:1] == b"\x01" and len(extra) > 21:
        return extra[21] >> 3 & 7 == 1
    for unit in nal_units(codec, extra):
        if unit[0] >> 1 & 63 == 33 and len(unit) > 2:  # the sequence parameter set
            return unit[2] >> 1 & 7 == 0
    return False

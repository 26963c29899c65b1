"""Whether pictures of an H.264 or H.265 stream were lost, by what slices say of their neighbours.

A gap in the times of a stream means either that the camera or the screen recorder made no picture there, or
that pictures were lost on the way. A decoder leaves out pictures that follow on lost ones, without a word, so
that packets no longer number frames. In a container's index both gaps look alike; slice headers tell them
apart, as H.264 counts its reference pictures (``frame_num``) and H.265 all pictures (picture order count).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tubelet.video.access import nal_units

# Gaps that are looked at, evenly spread: a look costs a request where the object lies in a store. Streams
# with losses show them soon; those whose camera makes gaps by nature have thousands.
_LOOKS = 16
# Messages (SEI) of a packet lie before its slices, whose headers are short.
HEAD_BYTES = 2048
_HEADER_BYTES = 96

_H264_SPS, _H264_SLICES, _H264_IDR = 7, (1, 5), 5
_H265_SPS, _H265_PPS, _H265_SLICES, _H265_IRAP, _H265_IDR = 33, 34, range(32), range(16, 24), (19, 20)
# Profiles whose parameter sets say more of colours and scaling (ITU-T H.264, 7.3.2.1.1).
_H264_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}

Int64s = npt.NDArray[np.int64]
# The first bytes of the packet with a given index in decode order.
Head = Callable[[int], bytes]


def gaps_in(ticks: Int64s) -> Int64s:
    """Indices after which rising ``ticks`` leave out one or more of their usual steps."""
    steps = np.diff(ticks)
    return np.flatnonzero(steps > 1.5 * np.median(steps)) if len(steps) else np.zeros(0, np.int64)


def pictures_lost(
    name: str, codec: Any, *, shown: Int64s, pts: Int64s, dts: Int64s | None, head: Head
) -> bool:
    """Whether slices beside gaps in the times say that pictures between them were lost.

    Args:
        name: the codec's name.
        codec: its context; its extradata holds the parameter sets.
        shown: indices of packets in the order in which they are presented.
        pts: (packets,) presentation times in decode order.
        dts: (packets,) decode times, where gaps in them tell where packets are missing; else None, and all
            packets are looked at.
        head: gives the first bytes of a packet.

    Returns:
        False too where slices do not tell.
    """
    try:
        places = range(len(pts) - 1) if dts is None else _spread(gaps_in(dts))
        if name == "h264":
            return _h264_lost(codec, places, head)
        # Where a film is cut, pictures are missing before its last ones, but no packet is.
        return name == "hevc" and len(places) > 0 and _h265_lost(codec, shown, pts, head)
    except (ValueError, IndexError):
        return False


def _h264_lost(codec: Any, places: Iterable[int], head: Head) -> bool:
    """Reference pictures are numbered one by one from each IDR picture on (ITU-T H.264, 7.4.3)."""
    sets = [unit for unit in _parameter_sets(codec) if unit and unit[0] & 31 == _H264_SPS]
    if not sets:
        return False
    sps = _H264Sps.parse(sets[0])
    for index in () if sps.may_have_gaps else places:
        before, after = (_H264Slice.find(nal_units(codec, head(i)), sps) for i in (index, index + 1))
        if before is None or after is None or after.is_idr:
            continue
        last = before.number if before.is_reference else before.number - 1
        if (after.number - last) % (1 << sps.number_bits) > 1:  # 0: the other field of a picture
            return True
    return False


def _h265_lost(codec: Any, shown: Int64s, pts: Int64s, head: Head) -> bool:
    """Pictures are counted in the order in which they are shown (ITU-T H.265, 8.3.1)."""
    by_kind = {_h265_kind(unit): unit for unit in _parameter_sets(codec) if unit}
    if not by_kind.keys() >= {_H265_SPS, _H265_PPS}:
        return False
    sets = _H265Sets.parse(by_kind[_H265_SPS], by_kind[_H265_PPS])

    def step(index: int) -> int | None:
        first, second = (
            sets.order_count(nal_units(codec, head(int(packet)))) for packet in shown[index : index + 2]
        )
        return None if first is None or second is None else (second - first) % (1 << sets.count_bits)

    gaps = gaps_in(pts[shown])
    even = np.setdiff1d(np.arange(len(shown) - 1), gaps)
    usual = [found for index in _spread(even[: 4 * _LOOKS]) if (found := step(index)) is not None]
    if not usual:
        return False
    return any((found := step(index)) is not None and found > np.median(usual) for index in _spread(gaps))


def _spread(found: Int64s) -> list[int]:
    if len(found) > _LOOKS:
        found = found[np.linspace(0, len(found) - 1, _LOOKS).round().astype(np.int64)]
    return [int(index) for index in found]


class _Bits:
    """Bits of a NAL unit after its header."""

    def __init__(self, unit: bytes, header_bytes: int, at_most: int | None = None) -> None:
        data = unit[header_bytes:at_most].replace(b"\0\0\3", b"\0\0")
        self._bits = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the header is cut short")
        self._left -= count
        return self._bits >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """An unsigned Exp-Golomb number (ITU-T H.264, 9.1)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def skip_golombs(self, count: int) -> None:
        for _ in range(count):
            self.golomb()


def _parameter_sets(codec: Any) -> Iterator[bytes]:
    """NAL units of the extradata: with start codes, or as avcC or hvcC have them (ISO/IEC 14496-15)."""
    extra = codec.extradata or b""
    if extra[:1] != b"\x01":
        yield from nal_units(codec, extra)
    elif codec.name == "h264":
        yield from _sized(extra, 6, extra[5] & 31)[0]
    else:
        position = 23
        for _ in range(extra[22]):
            count = int.from_bytes(extra[position + 1 : position + 3], "big")
            units, position = _sized(extra, position + 3, count)
            yield from units


def _sized(data: bytes, position: int, count: int) -> tuple[list[bytes], int]:
    """Units with two bytes of length before each, and where they end."""
    units = []
    for _ in range(count):
        begin = position + 2
        position = begin + int.from_bytes(data[position:begin], "big")
        units.append(data[begin:position])
    return units, position


class _H264Sps(NamedTuple):
    """What slice headers hang on (ITU-T H.264, 7.3.2.1.1)."""

    number_bits: int
    has_planes: bool
    may_have_gaps: bool

    @classmethod
    def parse(cls, unit: bytes) -> _H264Sps:
        bits = _Bits(unit, 1)
        profile = bits.read(8)
        bits.read(16)
        bits.golomb()
        has_planes = False
        if profile in _H264_HIGH:
            chroma = bits.golomb()
            has_planes = chroma == 3 and bool(bits.read(1))
            bits.skip_golombs(2)
            bits.read(1)
            if bits.read(1):
                _skip_scaling_lists(bits, 8 if chroma != 3 else 12)
        number_bits = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.read(1)
            bits.skip_golombs(2)
            bits.skip_golombs(bits.golomb())
        bits.golomb()
        return cls(number_bits, has_planes, bool(bits.read(1)))


def _skip_scaling_lists(bits: _Bits, count: int) -> None:
    for number in range(count):
        if not bits.read(1):
            continue
        last = following = 8
        for _ in range(16 if number < 6 else 64):
            if following:
                code = bits.golomb()
                following = (last + ((code + 1) // 2 if code & 1 else -(code // 2))) % 256
            last = following or last


class _H264Slice(NamedTuple):
    """The picture that a slice is of (ITU-T H.264, 7.3.3)."""

    is_idr: bool
    is_reference: bool
    number: int

    @classmethod
    def find(cls, units: list[bytes], sps: _H264Sps) -> _H264Slice | None:
        """From the first slice of a packet."""
        for unit in units:
            kind = unit[0] & 31
            if kind in _H264_SLICES:
                bits = _Bits(unit, 1, _HEADER_BYTES)
                bits.skip_golombs(3)
                if sps.has_planes:
                    bits.read(2)
                return cls(kind == _H264_IDR, unit[0] & 0b0110_0000 != 0, bits.read(sps.number_bits))
        return None


class _H265Sets(NamedTuple):
    """What slice headers hang on, of a sequence and of its pictures (ITU-T H.265, 7.3.2.2, 7.3.2.3)."""

    count_bits: int
    has_planes: bool
    skipped_bits: int
    has_output_flag: bool

    @classmethod
    def parse(cls, sps: bytes, pps: bytes) -> _H265Sets:
        bits = _Bits(sps, 2)
        bits.read(4)
        layers = bits.read(3)
        bits.read(1 + 88 + 8)  # nesting of layers; profile, tier and level
        present = [bits.read(2) for _ in range(layers)]
        if layers:
            bits.read(2 * (8 - layers))
        for flags in present:
            bits.read(88 * (flags >> 1) + 8 * (flags & 1))
        bits.golomb()
        has_planes = bits.golomb() == 3 and bool(bits.read(1))
        bits.skip_golombs(2)
        if bits.read(1):
            bits.skip_golombs(4)
        bits.skip_golombs(2)
        count_bits = bits.golomb() + 4
        bits = _Bits(pps, 2)
        bits.skip_golombs(2)
        bits.read(1)
        has_output_flag = bool(bits.read(1))
        return cls(count_bits, has_planes, bits.read(3), has_output_flag)

    def order_count(self, units: list[bytes]) -> int | None:
        """The low bits of a picture's order count, from its first slice (7.3.6.1).

        None for an IDR picture, at which counting begins anew.
        """
        unit = next((unit for unit in units if _h265_kind(unit) in _H265_SLICES), b"\xff")
        kind = _h265_kind(unit)
        if kind not in _H265_SLICES or kind in _H265_IDR:
            return None
        bits = _Bits(unit, 2, _HEADER_BYTES)
        bits.read(1 + (kind in _H265_IRAP))
        bits.golomb()
        bits.read(self.skipped_bits)
        bits.golomb()
        bits.read(self.has_output_flag + 2 * self.has_planes)
        return bits.read(self.count_bits)


def _h265_kind(unit: bytes) -> int:
    return unit[0] >> 1 & 63

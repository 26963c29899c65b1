"""The cheapest way to wanted frames.

A plan over the packet table decides where decoding starts: at the last safe entry point that is presented
at or before a wanted frame, or simply further on where that costs no more. Pictures that nothing refers to
are skipped unless they are wanted. The frames are those of decoding the whole stream from its start, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from pipeline.video.access import is_entry_point, may_skip_nonref
from pipeline.video.container import Video, logged_errors
from pipeline.video.sampling import Indices
from pipeline.video.table import PacketTable, codec_name

# Taken for every frame that was wanted: its index in presentation order, and the frame.
Take = Callable[[int, Any], None]

# A jump drains and refills the decoder: decoding on through so few packets is cheaper.
_WORTH_A_JUMP = 4
# Packets lying between two runs are read and dropped, rather than sought over, up to this much.
_READ_OVER_BYTES = 128 << 10
_READ_OVER_PACKETS = 64
# A container that calls every packet a keyframe is not believed for long.
_MAX_FALSE_KEYS = 4


class TableMismatchError(Exception):
    """The frames do not follow the packet table: only decoding everything tells which frames exist."""


class DamageError(Exception):
    """Something does not decode: what is shown from there on depends on every packet before it."""


class _FalseEntryError(Exception):
    """A packet flagged as a keyframe at which decoding cannot begin."""


@dataclass(frozen=True)
class Run:
    """Packets ``start`` to ``stop`` (inclusive, decode order) to be decoded, and which of them are wanted."""

    start: int
    stop: int
    wanted: frozenset[int]


def plan_runs(table: PacketTable, wanted: Indices) -> list[Run]:
    """Runs in decode order that hold the ``wanted`` frames (presentation indices, ascending)."""
    keys = np.flatnonzero(table.key)
    grouped: dict[int, list[int]] = {}
    for packet in table.shown[wanted].tolist():
        grouped.setdefault(_entry(table, keys, packet), []).append(packet)
    runs: list[Run] = []
    for start in sorted(grouped):
        packets = grouped[start]
        if runs and start - runs[-1].stop <= _WORTH_A_JUMP:
            last = runs.pop()
            runs.append(Run(last.start, max(last.stop, *packets), last.wanted | frozenset(packets)))
        else:
            runs.append(Run(start, max(packets), frozenset(packets)))
    return runs


def _entry(table: PacketTable, keys: Indices, packet: int) -> int:
    """Last keyframe decoded before ``packet`` that is also shown before it (open groups lead back
    further).
    """
    at = int(np.searchsorted(keys, packet, side="right")) - 1
    while at > 0 and table.pts[keys[at]] > table.pts[packet]:
        at -= 1
    return int(keys[at]) if at > 0 else 0


class Feed:
    """Packets of a run, by decode index, from the pass that listed them or from the container."""

    def __init__(self, video: Video, table: PacketTable) -> None:
        self._video = video
        self._table = table
        self._iterator: Iterator[Any] | None = None
        self._next = 0

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Packets ``start`` to ``stop``; fewer where the container breaks off."""
        if self._table.packets is not None:
            yield from zip(range(start, stop + 1), self._table.packets[start : stop + 1], strict=False)
            return
        self._video.source.expect(*self._byte_range(start, stop))
        self._go_to(start)
        assert self._iterator is not None
        while self._next <= stop:
            packet = next(self._iterator, None)
            if packet is None:
                self._video.cut_short = True
                return
            index, self._next = self._next, self._next + 1
            if packet.dts != self._table.dts[index] and self._table.indexed:
                raise TableMismatchError(f"packet {index} is not where the index has it")
            if index >= start:
                yield index, packet

    def _go_to(self, start: int) -> None:
        between = self._table.size[self._next : start]
        near = len(between) <= _READ_OVER_PACKETS and int(between.sum()) <= _READ_OVER_BYTES
        if self._iterator is not None and start >= self._next and (near or not self._table.indexed):
            return
        if self._table.indexed:
            self._seek(start)
        else:
            self._video.reopen()
            self._iterator, self._next = self._video.demux(), 0

    def _seek(self, start: int) -> None:
        self._video.container.seek(int(self._table.dts[start]), stream=self._video.stream)
        self._iterator = self._video.demux()
        first = next(self._iterator, None)
        if first is None:
            self._next = start
            return
        self._next = int(np.searchsorted(self._table.dts, first.dts))
        if self._next > start:
            raise TableMismatchError(f"seeking to packet {start} led past it")
        self._iterator = _chain(first, self._iterator)

    def _byte_range(self, start: int, stop: int) -> tuple[int, int]:
        pos, size = self._table.pos[start : stop + 1], self._table.size[start : stop + 1]
        return int(pos.min()), int((pos + size).max())


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


class IndexedDecoder:
    """Decodes wanted frames of a stream whose table is trusted.

    ``linear``: from the start and leaving nothing out, for damaged streams: concealment looks at all that
    came before.
    """

    def __init__(self, video: Video, table: PacketTable, take: Take, *, linear: bool = False) -> None:
        self._video = video
        self._table = table
        self._take = take
        self._feed = Feed(video, table)
        self._number = np.empty(len(table), np.int64)
        self._number[table.shown] = np.arange(len(table.shown))
        self._linear = linear
        self._may_skip = not linear and may_skip_nonref(codec_name(video), video.codec)
        self._skipping: bool | None = None
        self._shift: int | None = None
        self._last_pts = 0
        self.errors = 0
        self.taken: set[int] = set()

    @property
    def shift(self) -> int:
        """What the container adds to the times in the table."""
        return self._shift or 0

    def decode(self, wanted: Indices) -> None:
        """Take the ``wanted`` frames (presentation indices, ascending); ones that do not decode are left out.

        Raises:
            DamageError: decode linearly instead (never raised by a linear decoder).
            TableMismatchError: count the frames instead.
            DecodeError: a budget is used up, or the object cannot be read.
        """
        false_keys = 0
        while True:
            left = np.array([i for i in wanted.tolist() if i not in self.taken], np.int64)
            try:
                for run in self._plan(left):
                    self._decode_run(run)
                return
            except _FalseEntryError as error:
                false_keys += 1
                self._table.key[int(str(error))] = False
                if false_keys >= _MAX_FALSE_KEYS:
                    self._table.key[1:] = False

    def _plan(self, wanted: Indices) -> list[Run]:
        if not self._linear:
            return plan_runs(self._table, wanted)
        packets = self._table.shown[wanted].tolist()
        return [Run(0, max(packets), frozenset(packets))]

    def _decode_run(self, run: Run) -> None:
        sent: dict[int, int] = {}
        owed = set(run.wanted)
        entry_pts = self._table.pts[run.start]
        errors = logged_errors()
        self._last_pts = -(1 << 63)
        for index, packet in self._feed.read(run.start, run.stop):
            if (
                index == run.start
                and index > 0
                and not is_entry_point(codec_name(self._video), self._video.codec, packet)
            ):
                raise _FalseEntryError(str(index))
            self._check_time(index, packet)
            sent[packet.pts] = index
            self._skip_unless(index in run.wanted)
            self._receive(packet, sent, owed)
            if run.start and self._table.pts[index] < entry_pts:
                errors = logged_errors()  # shown before the entry point, so it lacks what it refers to
        self._receive(None, sent, owed)
        self._video.codec.flush_buffers()
        if not self._linear and (self.errors or logged_errors() != errors):
            raise DamageError
        if owed and not self.errors and self._video.broken is None and not self._video.cut_short:
            raise TableMismatchError(f"{len(owed)} packets gave no frame")

    def _check_time(self, index: int, packet: Any) -> None:
        shift = packet.pts - int(self._table.pts[index])
        if self._shift is None:
            self._shift = shift
        elif shift != self._shift:
            raise TableMismatchError(f"packet {index} has another time than the index says")

    def _skip_unless(self, wanted: bool) -> None:
        if self._skipping is None or (self._may_skip and self._skipping is wanted):
            self._skipping = not wanted
            self._video.codec.skip_frame = "DEFAULT" if wanted or not self._may_skip else "NONREF"

    def _receive(self, packet: Any, sent: dict[int, int], owed: set[int]) -> None:
        try:
            frames = self._video.codec.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            self.errors += 1
            return
        for frame in frames:
            self._video.budget.count_frame()
            index = sent.get(frame.pts)
            if index is None:
                raise TableMismatchError("a frame with a time that no packet has")
            if frame.pts <= self._last_pts:
                raise TableMismatchError("frames come in another order than their times say")
            if frame.is_corrupt and not self._linear:
                raise DamageError
            self._last_pts = frame.pts
            if index in owed:
                owed.discard(index)
                number = int(self._number[index])
                self._take(number, frame)
                self.taken.add(number)


class SequentialDecoder:
    """Decodes a stream from its start, frame by frame: always right, never fast.

    Packets that are not kept are read from where the container stands: at its start.
    """

    def __init__(self, video: Video, table: PacketTable | None) -> None:
        self._video = video
        self._packets = None if table is None else table.packets
        self.errors = 0

    def frames(self) -> Iterator[Any]:
        """All frames in presentation order. A packet that does not decode is counted and passed over."""
        codec = self._video.codec
        codec.flush_buffers()
        codec.skip_frame = "DEFAULT"
        for packet in self._packets if self._packets is not None else self._video.demux():
            yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Any) -> Iterator[Any]:
        try:
            frames = self._video.codec.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            self.errors += 1
            return
        for frame in frames:
            self._video.budget.count_frame()
            yield frame

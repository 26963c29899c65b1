"""The cheapest way to wanted frames.

A plan over the packet table decides where decoding starts: at the last safe entry point that is presented
at or before a wanted frame, or simply further on where that costs no more. Pictures that nothing refers to
are skipped unless they are wanted. The frames are those of decoding the whole stream from its start, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import av
import numpy as np

from tubelet.video.access import is_entry_point, reference_test
from tubelet.video.container import Video, logged_errors
from tubelet.video.sampling import Indices
from tubelet.video.table import PacketTable, codec_name

# Taken for every frame that was wanted: its index in presentation order, and the frame.
Take = Callable[[int, Any], None]

# A jump drains and refills the decoder: decoding on through so few packets is cheaper.
_WORTH_A_JUMP = 4
# Packets lying between two runs are read and dropped, rather than sought over, up to this much.
_READ_OVER_BYTES = 128 << 10
_READ_OVER_PACKETS = 64
# Packets read before they are decoded: a batch costs less than as many single steps.
_BATCH = 256
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
    """Index of the last keyframe that is decoded, and shown, no later than ``packet``.

    Frames that are shown before the keyframe they follow (open groups) lead back to an earlier one, in the
    end to packet 0.
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

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, list[Any]]]:
        """Packets ``start`` to ``stop`` as (index of the first, packets); fewer where the container ends."""
        if self._table.packets is not None:
            yield start, self._table.packets[start : stop + 1]
            return
        self._video.source.expect(*self._byte_range(start, stop))
        self._go_to(start)
        assert self._iterator is not None
        while self._next <= stop:
            count = min(stop + 1 - self._next, _BATCH)
            batch = list(islice(self._iterator, count))
            first, self._next = self._next, self._next + len(batch)
            if batch and self._next > start:
                yield max(first, start), batch[max(0, start - first) :]
            if len(batch) < count:
                self._video.cut_short = True
                return

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
        self._iterator = chain((first,), self._iterator)

    def _byte_range(self, start: int, stop: int) -> tuple[int, int]:
        pos, size = self._table.pos[start : stop + 1], self._table.size[start : stop + 1]
        return int(pos.min()), int((pos + size).max())


class IndexedDecoder:
    """Decodes wanted frames of a stream whose table is trusted.

    ``linear``: the whole stream and leaving nothing out, for damaged streams: concealment looks at all that
    came before, and which frames there are must not depend on which are wanted.
    """

    def __init__(self, video: Video, table: PacketTable, take: Take, *, linear: bool = False) -> None:
        self._video = video
        self._table = table
        self._take = take
        self._feed = Feed(video, table)
        self._number = np.empty(len(table), np.int64)
        self._number[table.shown] = np.arange(len(table.shown))
        self._linear = linear
        self._is_referred_to = None if linear else reference_test(codec_name(video), video.codec)
        self._shift: int | None = None
        self._last_pts = 0
        self._given = 0
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
        return [Run(0, len(self._table) - 1, frozenset(self._table.shown[wanted].tolist()))]

    def _decode_run(self, run: Run) -> None:
        sent: dict[int, int] = {}
        owed = set(run.wanted)
        leading = self._leading(run)
        errors = logged_errors()
        is_referred_to = self._is_referred_to
        self._last_pts = -(1 << 63)
        self._video.codec.flush_buffers()  # an attempt that failed may have left it drained
        for first, packets in self._feed.batches(run.start, run.stop):
            if first == run.start > 0 and not self._is_entry(packets[0]):
                raise _FalseEntryError(str(run.start))
            ticks = self._times(first, packets)
            sent.update(zip(ticks, range(first, first + len(ticks)), strict=True))
            for index, packet in enumerate(packets, first):
                if index not in owed and is_referred_to is not None and not is_referred_to(packet):
                    continue
                self._receive(packet, sent, owed)
                if index in leading:
                    errors = logged_errors()  # shown before the entry point, so it lacks what it refers to
        self._receive(None, sent, owed)
        self._video.codec.flush_buffers()
        if not self._linear and (self.errors or logged_errors() != errors):
            raise DamageError
        lacking = bool(owed) if not self._linear else self._given < len(self._table.shown)
        complete = not self.errors and self._video.broken is None and not self._video.cut_short
        if lacking and complete:
            raise TableMismatchError("packets gave no frame")

    def _leading(self, run: Run) -> frozenset[int]:
        """Packets after an entry point that are shown before it."""
        if run.start == 0:
            return frozenset()
        pts = self._table.pts[run.start : run.stop + 1]
        return frozenset((run.start + np.flatnonzero(pts < pts[0])).tolist())

    def _is_entry(self, packet: Any) -> bool:
        return is_entry_point(codec_name(self._video), self._video.codec, packet)

    def _times(self, first: int, packets: list[Any]) -> list[int]:
        """Presentation times of packets, which must be the table's but for one constant."""
        ticks = [packet.pts for packet in packets]
        if self._shift is None:
            self._shift = ticks[0] - int(self._table.pts[first])
        listed = self._table.pts[first : first + len(ticks)] + self._shift
        if ticks != listed.tolist():
            raise TableMismatchError(f"packets from {first} on have other times than the index says")
        return ticks

    def _receive(self, packet: Any, sent: dict[int, int], owed: set[int]) -> None:
        try:
            frames = self._video.codec.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            self.errors += 1
            return
        self._video.budget.count_frames(len(frames))
        for frame in frames:
            pts = frame.pts
            if pts <= self._last_pts:
                raise TableMismatchError("frames come in another order than their times say")
            self._last_pts = pts
            if frame.is_corrupt and not self._linear:
                raise DamageError
            index = sent.get(pts)
            if index is None:
                raise TableMismatchError("a frame with a time that no packet has")
            self._given += 1
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
        self.broke_off = False
        """Whether the last packets did not decode."""

    def frames(self) -> Iterator[Any]:
        """All frames in presentation order. A packet that does not decode is counted and passed over."""
        codec = self._video.codec
        codec.flush_buffers()
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
            self.broke_off = True
            return
        if packet is not None and frames:
            self.broke_off = False
        self._video.budget.count_frames(len(frames))
        yield from frames

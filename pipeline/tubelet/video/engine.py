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
# Decoders that learn from a stream which faults of its encoder to allow for, and keep that over keyframes: an
# MPEG-4 decoder lets bits after the last macroblock pass until it has seen three packets end as they should.
# A run that begins further on is preceded by so many packets of the stream's head; some may be damaged.
_LEARNING = frozenset({"mpeg4"})
_LEARNT_FROM = 8


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

    ``linear``: the whole stream and leaving nothing out, by a decoder that has seen nothing yet, for damaged
    streams: concealment looks at all that came before, and which frames there are must not depend on which
    are wanted. Frames keep the numbers of their packets, so that damage changes no number after it.
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
        self._given: set[int] = set()
        self._damaged: list[int] = []
        self._learnt = linear or codec_name(video) not in _LEARNING
        self.errors = 0
        self.taken: set[int] = set()

    @property
    def shift(self) -> int:
        """What the container adds to the times in the table."""
        return self._shift or 0

    @property
    def met_damage(self) -> bool:
        """Whether a linear decoder found packets that do not decode as they should."""
        return len(self._damaged) > 0

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
                    if run.start > 0:
                        self._learn()
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

    def _learn(self) -> None:
        if self._learnt:
            return
        self._learnt = True
        errors = logged_errors()
        for _, packets in self._feed.batches(0, min(_LEARNT_FROM, len(self._table)) - 1):
            for packet in packets:
                try:
                    self._video.codec.decode(packet)
                except av.error.FFmpegError as error:
                    raise DamageError from error
        if logged_errors() != errors:
            raise DamageError

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
                self._receive(index, packet, sent, owed)
                if index in leading:
                    errors = logged_errors()  # shown before the entry point, so it lacks what it refers to
                elif self._linear and logged_errors() != errors:
                    errors = logged_errors()
                    self._damaged.append(index)
        self._receive(run.stop, None, sent, owed)
        self._video.codec.flush_buffers()
        if not self._linear and (self.errors or logged_errors() != errors):
            raise DamageError
        complete = not self.errors and self._video.broken is None and not self._video.cut_short
        if complete and (self._lacks_unexplained() if self._linear else owed):
            raise TableMismatchError("packets gave no frame")

    def _lacks_unexplained(self) -> bool:
        """Whether a packet gave no frame although neither it nor what it may refer to is damaged."""
        lacking = np.setdiff1d(self._table.shown, list(self._given))
        if not len(lacking) or not self._damaged:
            return len(lacking) > 0
        before = np.searchsorted(self._damaged, lacking, side="right")
        groups = np.cumsum(self._table.key)
        last = groups[np.array(self._damaged)[before - 1]]
        return bool(((before == 0) | (groups[lacking] - last > 1)).any())

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

    def _receive(self, at: int, packet: Any, sent: dict[int, int], owed: set[int]) -> None:
        try:
            frames = self._video.codec.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            self.errors += 1
            self._damaged.append(at)
            return
        self._video.budget.count_frames(len(frames))
        for frame in frames:
            if frame.is_corrupt:
                if not self._linear:
                    raise DamageError
                self._damaged.append(at)
            pts = frame.pts
            index = sent.get(pts)
            if index is None:
                raise TableMismatchError("a frame with a time that no packet has")
            if pts <= self._last_pts:
                raise TableMismatchError("frames come in another order than their times say")
            self._last_pts = pts
            self._given.add(index)
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
        self._has_headers = codec_name(video) == "theora"
        self._begun = False
        self.errors = 0
        """Packets that do not decode."""
        self.lost = 0
        """Of these, the pictures; not those before the first keyframe of a recording that was cut into."""

    def frames(self) -> Iterator[Any]:
        """All frames in presentation order. A packet that does not decode is counted and passed over."""
        codec = self._video.codec
        codec.flush_buffers()
        for packet in self._packets if self._packets is not None else self._video.demux():
            yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Any) -> Iterator[Any]:
        self._begun |= packet is not None and packet.is_keyframe
        try:
            frames = self._video.codec.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            self.errors += 1
            # Where Theora files were joined, headers of the second lie among pictures (Theora I, 6.1).
            is_header = self._has_headers and packet is not None and memoryview(packet)[0] & 0x80
            self.lost += self._begun and not is_header
            return
        self._begun |= len(frames) > 0
        self._video.budget.count_frames(len(frames))
        yield from frames

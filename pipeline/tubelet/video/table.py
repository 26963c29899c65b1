"""The packets of a stream, in decode order, with what tells when each is shown.

The table is where sampling and the cost model look. It comes from the container's index where that
describes the whole stream (MP4, MOV: no picture is read), else from a pass over the packets, which are kept
when they are small enough, so that nothing is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.video.access import INTRA_ONLY
from tubelet.video.clock import clock_of, clock_steps, joined
from tubelet.video.container import Video
from tubelet.video.losses import HEAD_BYTES, gaps_in, pictures_lost
from tubelet.video.sampling import Clock

# Flags of FFmpeg's index entries.
_KEYFRAME, _DISCARD = 1, 2

Int64s = npt.NDArray[np.int64]

_UNKNOWN = -1

# Packets kept between the pass that lists them and the pass that decodes them. Longer videos are read twice.
KEPT_BYTES = 256 << 20

# Codecs whose packets give exactly one picture each, with its presentation time: their packet table is
# their timeline. For all others the frames themselves are counted.
ONE_FRAME_PER_PACKET = {
    "h264", "hevc", "vvc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "h263", "flv1", "mjpeg",
    "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "qtrle", "theora",
    "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "jpeg2000",
}  # fmt: skip

# Codecs whose decoders leave out pictures, without a word, when packets before them were lost.
SILENT_LOSSES = {
    "hevc", "vvc", "mpeg4", "mpeg2video", "mpeg1video", "h263", "flv1", "theora", "msmpeg4v1", "msmpeg4v2",
    "msmpeg4v3", "wmv1", "wmv2",
}  # fmt: skip


@dataclass
class PacketTable:
    """Packets in decode order; all arrays are (packets,).

    ``pts``, ``dts``: in ``time_base`` units (``pts`` up to a constant when it comes from an index).
    ``hidden``: decoded but never shown (cut by an edit list). ``trusted``: each shown packet is one frame,
    presented in the order of ``pts``; else only decoding everything tells which frames there are.
    ``stepped``: decode times fall or jump, as where recordings were joined; ``pts`` then go on where they
    did.
    """

    time_base: Fraction
    pts: Int64s
    dts: Int64s
    size: Int64s
    pos: Int64s
    key: npt.NDArray[np.bool_]
    hidden: npt.NDArray[np.bool_]
    last_duration: int
    trusted: bool
    indexed: bool
    packets: list[Any] | None = None
    stepped: bool = False
    shown: Int64s = field(init=False)

    def __post_init__(self) -> None:
        visible = np.flatnonzero(~self.hidden)
        self.shown = visible[np.argsort(self.pts[visible], kind="stable")]

    def __len__(self) -> int:
        return len(self.pts)

    def clock(self) -> Clock:
        """When each shown packet is presented."""
        ticks = self.pts[self.shown]
        return clock_of(ticks, self.last_duration, self.time_base)

    def keyframes_s(self) -> tuple[float, ...]:
        """Presentation times of the packets that decoding can begin at, from the first presented frame."""
        begin = int(self.pts[self.shown[0]]) if len(self.shown) else 0
        ticks = np.sort(self.pts[self.key & ~self.hidden]) - begin
        return tuple((ticks * self.time_base.numerator / self.time_base.denominator).tolist())


def build_table(video: Video, *, scan: bool = True) -> PacketTable | None:
    """The table of a stream that stands at its start; afterwards the container may stand anywhere.

    ``scan``: pass over the packets where there is no complete index (reads the whole object); else None.
    """
    table = _from_index(video)
    return table if table is not None or not scan else _from_packets(video)


def _from_index(video: Video) -> PacketTable | None:
    stream = video.stream
    entries = stream.index_entries
    if not video.is_mov or not stream.frames or len(entries) != stream.frames:
        return None
    offsets = video.mp4_index.presentation_offsets(stream.id, len(entries))
    if offsets is None:
        return None
    rows = np.array([(e.timestamp, e.size, e.pos, e.flags) for e in entries], np.int64)
    dts, size, pos, flags = rows.T
    pts = dts + offsets
    if (np.diff(dts) <= 0).any() or len(np.unique(pts)) != len(pts):
        return None
    table = PacketTable(
        time_base=video.time_base,
        pts=pts,
        dts=dts,
        size=size,
        pos=pos,
        key=flags & _KEYFRAME != 0,
        hidden=flags & _DISCARD != 0,
        last_duration=int(dts[-1] - dts[-2]) if len(dts) > 1 else 0,
        trusted=codec_name(video) in ONE_FRAME_PER_PACKET,
        indexed=True,
    )
    table.trusted = table.trusted and not _has_losses(video, table)
    return table


def _from_packets(video: Video) -> PacketTable:
    rows: list[tuple[int | None, int | None, int, int | None, bool, bool, int]] = []
    packets: list[Any] = []
    held = 0
    video.source.expect(0, video.source.size_bytes)
    for packet in video.demux():
        video.budget.check_time()
        held += packet.size
        rows.append(
            (
                packet.pts,
                packet.dts,
                packet.size,
                packet.pos,
                packet.is_keyframe,
                packet.is_discard,
                packet.duration or 0,
            )
        )
        if held <= KEPT_BYTES:
            packets.append(packet)
        else:
            packets.clear()
    video.source.expect(0, 0)
    pts, dts, size, pos, key, hidden, duration = zip(*rows, strict=True) if rows else ((),) * 7
    order_known = None not in pts and len(set(pts)) == len(pts)
    steps = clock_steps(dts, video.time_base, jumps=video.clock_may_jump)
    table = PacketTable(
        time_base=video.time_base,
        pts=joined(_filled(pts), steps) if steps.any() else _filled(pts),
        dts=_filled(dts),
        size=np.array(size, np.int64),
        pos=_filled(pos),
        key=np.array(key, np.bool_),
        hidden=np.array(hidden, np.bool_),
        last_duration=0,
        trusted=order_known and _order_is_presentation(video),
        indexed=False,
        packets=packets if held <= KEPT_BYTES else None,
        stepped=bool(steps.any()),
    )
    if len(table.shown):
        table.last_duration = int(duration[table.shown[-1]])
        table.trusted = table.trusted and not _needs_all(video, table)
    return table


def _needs_all(video: Video, table: PacketTable) -> bool:
    """Whether frames may depend on packets that a plan would leave out, or be others than packets say.

    A stream that does not begin with a keyframe is shown from where the decoder recovers. A transport
    stream with gaps has lost packets, and FFmpeg may conceal lost pictures without a word in its log.
    """
    known = table.dts[table.dts != _UNKNOWN]
    if table.stepped or not table.key[0] or (np.diff(known) < 0).any():
        return True
    return _has_gaps(table) and ("mpegts" in video.format_name or _has_losses(video, table))


def _has_losses(video: Video, table: PacketTable) -> bool:
    """Whether pictures were lost, or may have been: phones and screen recorders make gaps, too."""
    if not _has_gaps(table):
        return False
    name = codec_name(video)
    if name != "h264" and not (name == "hevc" and table.indexed):
        return name in SILENT_LOSSES
    with video.source.side_reader() as file:

        def head(index: int) -> bytes:
            if table.packets is not None:
                return bytes(memoryview(table.packets[index])[:HEAD_BYTES])
            if not table.indexed:
                return b""
            file.seek(int(table.pos[index]))
            return file.read(min(HEAD_BYTES, int(table.size[index])))

        # Decode times come from the index, or were made up from presentation times: then they do not tell
        # where a packet is missing.
        dts = table.dts if table.indexed else None
        return pictures_lost(name, video.codec, shown=table.shown, pts=table.pts, dts=dts, head=head)


def _has_gaps(table: PacketTable) -> bool:
    return len(gaps_in(table.pts[table.shown])) > 0


def _filled(values: tuple[int | None, ...]) -> Int64s:
    return np.array([_UNKNOWN if value is None else value for value in values], np.int64)


def _order_is_presentation(video: Video) -> bool:
    name = codec_name(video)
    # AVI knows no presentation times: only where nothing is reordered are its decode times as good.
    return name in INTRA_ONLY if video.container.format.name == "avi" else name in ONE_FRAME_PER_PACKET


def codec_name(video: Video) -> str:
    """The codec's name, whichever decoder is used for it (av1, not libdav1d)."""
    return str(video.codec.codec.canonical_name)

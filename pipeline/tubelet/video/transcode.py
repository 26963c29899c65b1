"""A small copy of a video that is cheap to seek in: every frame at its own time, in short closed groups.

A copy holds the frames that the original shows, right side up, with square pixels and at the original's
presentation times, so that clips, windows and segments of the one are those of the other. Frames that do not
decode are the last good one before them, as they are in clips.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from tubelet.video.buffers import ClipBuffers
from tubelet.video.container import Video
from tubelet.video.decode import decode_into, probe
from tubelet.video.engine import TableMismatchError
from tubelet.video.errors import DecodeError, ErrorCode
from tubelet.video.framing import Box, Placement
from tubelet.video.info import VideoInfo
from tubelet.video.limits import Limits
from tubelet.video.picture import Pixels
from tubelet.video.sampling import Clock, Indices
from tubelet.video.source import Source
from tubelet.video.views import View

# MP4 counts time in 32 bits; what a container counts finer is counted in these.
_FINEST = 1 << 24
_USUAL = Fraction(1, 90_000)
# x264 takes no smaller pictures.
_LEAST_SIDE = 16
_COLOURS = Colorspace.ITU601

File = IO[bytes] | io.FileIO


@dataclass(frozen=True)
class CopySpec:
    """What copies are like.

    Attributes:
        short_side: of the pictures, in pixels; smaller ones stay as they are.
        gop: frames of a group: what decoding one frame costs at most.
        crf: x264's constant rate factor; smaller is better and larger in bytes.
    """

    short_side: int = 256
    gop: int = 12
    crf: int = 23

    def place(self, height: int, width: int) -> Placement:
        """The whole picture; its sides are even, as colour at half the resolution needs them."""
        scale = min(1.0, self.short_side / min(height, width))
        new_height, new_width = (max(_LEAST_SIDE, 2 * round(side * scale / 2)) for side in (height, width))
        whole = Box(0, 0, new_height, new_width)
        return Placement(Box(0, 0, height, width), new_height, new_width, whole)


@dataclass(frozen=True)
class Copied:
    """A copy.

    Attributes:
        file: it, at its first byte.
        info: what it holds.
        error: with the code ``partial`` where frames of the original do not decode.
    """

    file: File
    info: VideoInfo
    error: DecodeError | None = None


@dataclass(frozen=True)
class _EveryFrame:
    def pick(self, clock: Clock) -> Indices:
        return np.arange(len(clock), dtype=np.int64)


def new_file() -> File:
    """A file for a copy, without a name."""
    return tempfile.TemporaryFile(prefix="tubelet-copy-")


def transcode(
    source: Source,
    spec: CopySpec,
    *,
    window_s: tuple[float, float] | None = None,
    limits: Limits | None = None,
    file: File | None = None,
) -> Copied:
    """Make a copy of a video, or of the frames presented in a window of it (whose first is then at 0 s).

    Args:
        source: a path, bytes, an open binary file, or a callable that opens one.
        spec: what it is like.
        window_s: seconds from the first presented frame.
        limits: budgets.
        file: where it goes, written and read by its descriptor; None: a new one without a name.

    Returns:
        An MP4 of H.264 without sound, its index first, in ``file``: the same bytes from the same video.

    Raises:
        DecodeError: the video cannot be used, or fewer than half of its frames decode.
    """
    given, file = file, file or new_file()
    try:
        copier = _Copier(file, spec)
        view = View(_EveryFrame(), spec)
        with copier:
            decoded = decode_into(copier.begin, source, [view], window_s=window_s, limits=limits)
        with os.fdopen(os.dup(file.fileno()), "rb") as again:
            info = probe(again, limits=limits)
        file.seek(0)
    except BaseException:
        if given is None:
            file.close()
        raise
    return Copied(file, info, decoded.error)


class _Positioned(io.RawIOBase):
    """A file with a position of its own, over a descriptor that stays open."""

    name = "copy.mp4"

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._position = descriptor, 0

    def read(self, size: int = -1) -> bytes:
        data = os.pread(self._descriptor, size, self._position)
        self._position += len(data)
        return data

    def write(self, data: Any) -> int:
        count = os.pwrite(self._descriptor, data, self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = os.fstat(self._descriptor).st_size if whence == os.SEEK_END else 0
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: end}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    writable = seekable = readable


class _Copier:
    """Writes the copy anew each time decoding begins; ends the last one with the block."""

    def __init__(self, file: File, spec: CopySpec) -> None:
        self._file, self._spec = file, spec
        self._last: _CopyBuffers | None = None

    def begin(
        self, video: Video, views: Sequence[View], picks: Sequence[Indices], clock: Clock
    ) -> _CopyBuffers:
        """Where the frames go from here on."""
        if self._last is not None:
            self._last.drop()
        self._last = _CopyBuffers(video, views, picks, clock, encoder=_Encoder(self._file, self._spec, video))
        return self._last

    def __enter__(self) -> _Copier:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._last is not None:
            if kind is None:
                self._last.finish()
            else:
                self._last.drop()


class _CopyBuffers(ClipBuffers):
    """Hands frames on to the encoder, one picture in memory."""

    def __init__(
        self,
        video: Video,
        views: Sequence[View],
        picks: Sequence[Indices],
        clock: Clock,
        *,
        encoder: _Encoder,
    ) -> None:
        super().__init__(video, views, picks, clock, allocate=_new_memory)
        self._lengths = [1]
        self._encoder, self._clock = encoder, clock
        self._next = 0

    def take(self, number: int, frame: Any) -> None:
        """Paint a frame, and write it at each of its times."""
        self._paint(frame, [(0, 0)])
        for _, place in self._places[number]:
            if place != self._next:
                raise TableMismatchError("frames do not come in the order they are shown in")
            self._encoder.write(self.clips[0][0], float(self._clock.times_s[place] - self._clock.times_s[0]))
            self._next += 1

    def finish(self) -> None:
        """No more frames: the last one is shown until the clock's end."""
        if self._next < len(self._clock):
            raise DecodeError("partial", f"{self._next} of {len(self._clock)} frames decode")
        self._encoder.finish(self._clock.end_s - float(self._clock.times_s[0]))

    def drop(self) -> None:
        """The copy is not wanted."""
        self._encoder.close()


class _Encoder:
    """Pictures to an MP4 in a file that has no name.

    Args:
        file: where to; what it holds is overwritten.
        spec: how.
        video: the original, for its unit of time.
    """

    def __init__(self, file: File, spec: CopySpec, video: Video) -> None:
        self._spec = spec
        base = Fraction(video.time_base)
        self._base = base if base.denominator <= _FINEST else _USUAL
        descriptor = file.fileno()
        with _writing():
            file.truncate(0)
            # FFmpeg opens what it wrote to read it again, and so puts the index first; but names lead nowhere
            # in a contained process.
            self._container = av.open(
                _Positioned(descriptor),
                "w",
                format="mp4",
                options={"movflags": "faststart"},
                io_open=lambda *_: _Positioned(descriptor),
            )
        self._stream: Any = None
        self._tick = -1
        self._waiting: Any = None

    def write(self, picture: Pixels, time_s: float) -> None:
        """Add a picture, uint8 (H, W, 3), shown from ``time_s``; times rise."""
        if self._stream is None:
            self._begin(picture)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = self._reformatter.reformat(frame, format="yuv420p", dst_colorspace=_COLOURS)
        self._tick = max(self._tick + 1, round(time_s / self._base))
        frame.pts, frame.time_base = self._tick, self._base
        self._mux(self._stream.encode(frame))

    def finish(self, end_s: float) -> None:
        """Flush; the last picture is shown until ``end_s``."""
        self._mux(self._stream.encode(None))
        self._waiting.duration = max(1, round(end_s / self._base) - self._tick)
        with _writing():
            self._container.mux(self._waiting)
        self.close()

    def close(self) -> None:
        """Close the file."""
        with _writing():
            self._container.close()

    def _begin(self, picture: Pixels) -> None:
        height, width = picture.shape[:2]
        gop = self._spec.gop
        # With its macroblock tree, x264 reads memory that nobody wrote where a processor has AVX-512, and the
        # same pictures become other bytes each time; in groups as short as these it saves nothing.
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0:mbtree=0"
        options = {"preset": "fast", "tune": "fastdecode", "crf": str(self._spec.crf), "x264-params": params}
        self._stream = self._container.add_stream("libx264", rate=30, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base, context.gop_size = self._base, gop
        context.thread_count = 1
        context.colorspace = _COLOURS
        self._reformatter = VideoReformatter()

    def _mux(self, packets: list[Any]) -> None:
        """All but the last one, whose duration only the end tells."""
        for packet in packets:
            if self._waiting is not None:
                with _writing():
                    self._container.mux(self._waiting)
            self._waiting = packet


@contextmanager
def _writing() -> Iterator[None]:
    """What goes wrong with the copy's own file is this machine's doing, and says nothing of the video."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise DecodeError(ErrorCode.TOO_LARGE, "the copy is larger than --memory allows") from error
        raise DecodeError(ErrorCode.IO_ERROR, f"the copy cannot be written: {error}") from error


def _new_memory(size_bytes: int) -> Pixels:
    return np.empty(size_bytes, np.uint8)

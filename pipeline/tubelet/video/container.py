"""An opened container and the picture track chosen from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
from av.stream import Discard, Disposition

from tubelet.video.errors import DecodeError
from tubelet.video.limits import Budget
from tubelet.video.source import OpenSource, Source, open_source

# Demuxers that open further files or addresses named inside the file: a bucket's object must not reach those.
_NESTING = {
    "applehttp", "avisynth", "concat", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp",
    "tedcaptions", "vapoursynth", "webm_dash_manifest", "libcdio", "image2", "alias_pix", "brender_pix",
}  # fmt: skip


def _readable_formats() -> str:
    return ",".join(sorted(name for name in av.formats_available if name not in _NESTING))


_OPTIONS = {"format_whitelist": _readable_formats()}

# FFmpeg says in its log alone that it concealed damage. With no level set PyAV does not even count what is
# logged.
if av.logging.get_level() is None:
    av.logging.set_level(av.logging.PANIC)


def logged_errors() -> int:
    """How many errors FFmpeg has logged in this process."""
    return int(av.logging.get_last_error()[0])


class Video:
    """The chosen stream of an open container, with one decoder thread."""

    def __init__(self, container: Any, stream: Any, source: OpenSource, budget: Budget) -> None:
        self.container = container
        self.source = source
        self.budget = budget
        self._attach(stream)
        self.time_base: Fraction = stream.time_base
        ratio = stream.sample_aspect_ratio
        self.sample_aspect = ratio if ratio and Fraction(1, 16) <= ratio <= 16 else Fraction(1)
        """Width of a pixel over its height; 1 where the stream says nothing sensible."""
        self.coded_size: tuple[int, int] = (int(self.codec.height), int(self.codec.width))

    def _attach(self, stream: Any) -> None:
        self.stream = stream
        self.codec = stream.codec_context
        self.codec.thread_count = 1
        self.broken: str | None = None
        """Why reading the container ended before its end."""
        self.cut_short = False
        """Whether the container ended before its index does."""
        for other in self.container.streams:
            if other is not stream:
                other.discard = Discard.all

    @property
    def is_mov(self) -> bool:
        return str(self.container.format.name).startswith("mov,")

    def demux(self) -> Iterator[Any]:
        """Packets of the stream from where the container stands, without the empty one at the end.

        A container that breaks off ends there; ``broken`` then says why.
        """
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            self.broken = _reason(error)

    def reopen(self) -> None:
        """Back to the first packet, with a fresh decoder: seeking to it is not reliable in every
        container.
        """
        index = self.stream.index
        self.container.close()
        self.source.rewind()
        self.container = _open_container(self.source)
        self._attach(self.container.streams[index])


@contextmanager
def open_video(source: Source, budget: Budget) -> Iterator[Video]:
    """Open a source and choose its picture track.

    Raises:
        DecodeError: ``not_found``, ``io_error``, ``too_large``, ``open_error``, ``no_video_stream``,
            ``no_decoder``.
    """
    with open_source(source, budget) as opened:
        container = _open_container(opened)
        video: Video | None = None
        try:
            stream = _choose(list(container.streams.video))
            budget.check_picture(stream.codec_context.width, stream.codec_context.height)
            video = Video(container, stream, opened, budget)
            yield video
        finally:
            (container if video is None else video.container).close()


def _open_container(opened: OpenSource) -> Any:
    try:
        return av.open(opened.for_ffmpeg, container_options=_OPTIONS, metadata_errors="replace")
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("out_of_memory", "no memory left to open the file") from error
    except FileNotFoundError as error:
        raise DecodeError("not_found", f"no such file: {opened.path}") from error
    except PermissionError as error:
        raise DecodeError("io_error", f"cannot be read: {opened.path}") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError("open_error", f"no container that can be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _choose(streams: list[Any]) -> Any:
    """The largest picture by area, the default flag breaking ties; a cover picture only where there is no
    video.
    """
    if not streams:
        raise DecodeError("no_video_stream", "no picture track")
    films = [s for s in streams if not s.disposition & Disposition.attached_pic] or streams
    decodable = [s for s in films if s.codec_context is not None]
    if not decodable:
        raise DecodeError("no_decoder", "the picture track's codec is not known to this FFmpeg")
    return max(decodable, key=_rank)


def _rank(stream: Any) -> tuple[int, bool, int]:
    codec = stream.codec_context
    return codec.width * codec.height, bool(stream.disposition & Disposition.default), -stream.index

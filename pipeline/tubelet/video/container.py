"""An opened container and the picture track chosen from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from typing import Any

import av
from av.stream import Discard

from tubelet.video.content import HEAD_BYTES, recognise
from tubelet.video.errors import DecodeError
from tubelet.video.formats import ALLOWED, PICTURES
from tubelet.video.framing import Box
from tubelet.video.limits import Budget
from tubelet.video.matroska import is_joined, shown_margins
from tubelet.video.mp4 import Index
from tubelet.video.picture import ContainerCrop
from tubelet.video.source import OpenSource, Source, open_source
from tubelet.video.tracks import choose_stream, is_item

_OPTIONS = {"format_whitelist": ",".join(sorted(ALLOWED))}

# FFmpeg's flag AVFMT_TS_DISCONT.
_TS_DISCONT = 0x0200

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
        """(height, width) of the coded picture, less what the container cuts from it; 0 where not known."""
        self.crop = self._container_crop()
        """The part of the coded picture that is shown, where that is not all of it."""
        if self.crop is not None:
            self.coded_size = (self.crop.box.height, self.crop.box.width)

    @cached_property
    def mp4_index(self) -> Index:
        """The index of an MP4 or MOV file, read once."""
        with self.source.side_reader() as file:
            return Index(file)

    def _container_crop(self) -> ContainerCrop | None:
        height, width = self.coded_size
        top = left = 0
        shown_height, shown_width = height, width
        if self.is_mov:
            aperture = self.mp4_index.clean_aperture(self.stream.id)
            if aperture is not None:
                shown_height, shown_width = int(aperture.height), int(aperture.width)
                top = round((height - aperture.height) / 2 + aperture.down)
                left = round((width - aperture.width) / 2 + aperture.right)
        elif self.format_name.startswith("matroska"):
            tracks = [s.index for s in self.container.streams.video]
            with self.source.side_reader() as file:
                margins = shown_margins(file, tracks.index(self.stream.index))
            if margins is not None:
                top, left = margins.top, margins.left
                shown_height = height - top - margins.bottom
                shown_width = width - left - margins.right
                if Fraction(1, 16) <= margins.sample_aspect <= 16:
                    self.sample_aspect = margins.sample_aspect
        inside = 0 <= top <= height - shown_height and 0 <= left <= width - shown_width
        if (shown_height, shown_width) == (height, width) or not inside or min(shown_height, shown_width) < 1:
            return None
        return ContainerCrop(Box(top, left, shown_height, shown_width), height, width)

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
    def format_name(self) -> str:
        """FFmpeg's name of the container's format."""
        return str(self.container.format.name)

    @property
    def is_picture_file(self) -> bool:
        """Whether files of this format hold one picture as a rule: a count of one then means a still."""
        return self.format_name in PICTURES | {"gif", "apng", "mjpeg", "jpegxl_anim"} or is_item(
            self.stream, self.source
        )

    def is_still(self, pictures: int | None) -> bool:
        """Whether a file with so many ``pictures`` (None: not known) is a still and no video.

        A second picture in a file for single pictures is another view or size of it. An animated WebP is a
        video, whether it decodes or not.
        """
        if pictures is None or not self.is_picture_file:
            return False
        if self.format_name == "webp_pipe" and b"ANIM" in self.source.head(64):
            return False
        return pictures <= (2 if self.format_name in PICTURES else 1)

    @property
    def clock_may_jump(self) -> bool:
        """Whether times of this format may leap although nothing is missing (MPEG-TS, MPEG-PS, Ogg)."""
        return bool(int(self.container.format.flags) & _TS_DISCONT)

    @property
    def may_be_joined(self) -> bool:
        """Whether the header may tell of one recording although more follow: then only all packets tell."""
        if not self.format_name.startswith("matroska"):
            return self.clock_may_jump
        with self.source.side_reader() as file:
            return is_joined(file)

    @property
    def is_mov(self) -> bool:
        """Whether FFmpeg reads this as MP4 or MOV (one demuxer for the whole family, 3GP and M4V too)."""
        return self.format_name.startswith("mov,")

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
        """Back to the first packet, with a fresh decoder.

        The container is opened anew, as seeking to the first packet is not reliable in all of them.
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
            index, read = choose_stream(container, opened)
            if read:
                container.close()
                opened.rewind()
                container = _open_container(opened)
            stream = container.streams[index]
            budget.check_picture(stream.codec_context.width, stream.codec_context.height)
            video = Video(container, stream, opened, budget)
            yield video
        finally:
            (container if video is None else video.container).close()


def _open_container(opened: OpenSource) -> Any:
    file, options = opened.for_ffmpeg
    try:
        return av.open(file, container_options={**_OPTIONS, **options}, metadata_errors="replace")
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("out_of_memory", "no memory left to open the file (--memory)") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        content = recognise(opened.head(HEAD_BYTES))
        raise DecodeError(
            "open_error", f"no container that can be read: {_reason(error)}", content
        ) from error


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)

"""Which of a container's picture tracks is the video."""

from __future__ import annotations

from typing import Any

import av
from av.stream import Disposition

from tubelet.video.content import HEAD_BYTES, STILL_BRANDS, Content, major_brand, may_hold_items, recognise
from tubelet.video.errors import DecodeError
from tubelet.video.source import OpenSource

# Bytes read to learn whether a track holds a second picture, where the container does not say.
_LOOK_BYTES = 64 << 20


def choose_stream(container: Any, opened: OpenSource) -> tuple[int, bool]:
    """The index of the largest picture track, by area; the default flag breaks ties.

    A track of one picture (a poster, a cover, an item of an image file) never wins over one with more, but
    in files that call themselves a still picture. A cover picture is taken only where there is neither a
    video nor sound.

    Returns:
        The stream's index, and whether packets were read, so that the container must be opened anew.

    Raises:
        DecodeError: ``no_video_stream``, ``no_decoder``.
    """
    streams = list(container.streams.video)
    films = [s for s in streams if not s.disposition & Disposition.attached_pic]
    if not films:
        content = _content_without_picture(container, opened)
        if not streams or content is not None:
            raise DecodeError("no_video_stream", "no picture track", content)
        films = streams
    decodable = [s for s in films if s.codec_context is not None]
    if not decodable:
        raise DecodeError("no_decoder", "the picture track's codec is not known to this FFmpeg")
    if len(decodable) > 1 and major_brand(opened.head(16)) in STILL_BRANDS:
        decodable = [s for s in decodable if is_item(s, opened)] or decodable
        return max(decodable, key=_rank).index, False
    ranked = sorted(decodable, key=_rank, reverse=True)
    if len(ranked) == 1 or _listed_pictures(ranked[0]) > 1:
        return ranked[0].index, False
    several = [s for s in ranked if _listed_pictures(s) > 1]
    if several:
        return several[0].index, False
    return _first_with_two(container, ranked), True


def is_item(stream: Any, opened: OpenSource) -> bool:
    """Whether a stream is one picture that an image file (AVIF, HEIF) holds as an item."""
    return stream.frames == 1 and stream.duration is None and may_hold_items(opened.head(16))


def _rank(stream: Any) -> tuple[int, bool, int]:
    codec = stream.codec_context
    return codec.width * codec.height, bool(stream.disposition & Disposition.default), -stream.index


def _listed_pictures(stream: Any) -> int:
    """How many pictures the container's index lists so far; 0 or 1 may also mean that it lists none."""
    return max(int(stream.frames), len(stream.index_entries))


def _first_with_two(container: Any, ranked: list[Any]) -> int:
    """The first of the tracks that has a second packet; the first of all where none has."""
    counts = dict.fromkeys((s.index for s in ranked), 0)
    seen = 0
    try:
        for packet in container.demux(ranked):
            if not packet.size:
                continue
            counts[packet.stream_index] += 1
            seen += packet.size
            if counts[ranked[0].index] > 1 or seen > _LOOK_BYTES:
                break
    except av.error.FFmpegError:
        pass  # what was seen before the file breaks off has to do
    return int(next((s.index for s in ranked if counts[s.index] > 1), ranked[0].index))


def _content_without_picture(container: Any, opened: OpenSource) -> Content | None:
    kinds = {stream.type for stream in container.streams}
    if "audio" in kinds:
        return Content.AUDIO
    if "subtitle" in kinds:
        return Content.SUBTITLE
    return None if container.streams else recognise(opened.head(HEAD_BYTES))

"""Why a video could not be used, as a typed error with a stable code."""

from __future__ import annotations

from tubelet.video.content import Content


class DecodeError(Exception):
    """A video, or the part of it that was asked for, cannot be decoded.

    ``code`` is stable and goes into tables; ``str(error)`` is the message for people.

    ==================  ==========================================================================
    code                meaning
    ==================  ==========================================================================
    ``not_found``       the object is gone
    ``io_error``        the object could not be read (network, permissions)
    ``open_error``      no container that FFmpeg can read
    ``no_video_stream`` a container without a picture track
    ``no_decoder``      a picture track in a codec that this FFmpeg lacks
    ``zero_frames``     opens, but holds no frame
    ``decode_error``    holds packets, but none of them decodes
    ``partial``         breaks off: fewer than half of the wanted frames decode
    ``too_large``       over a budget: bytes of the object, pixels a frame, frames decoded
    ``out_of_memory``   over the memory budget
    ``timeout``         not done by the deadline
    ``crash``           the decoder process died
    ==================  ==========================================================================
    """

    def __init__(self, code: str, message: str, content: Content | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.content = content
        """What the object was recognised as, where it is no video: ``audio``, ``text``, ``still``, ...; None
        where it may be a video, broken or not."""

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str, Content | None]]:
        return type(self), (self.code, self.message, self.content)


class ClipError(ValueError):
    """A rule asks for what the video does not have: the caller's mistake, not the file's."""


class DecoderStartError(RuntimeError):
    """The decoder process does not start on this machine: no file's fault, and none will decode."""

"""Why a video could not be used: codes that rows carry, and the error that carries one."""

from __future__ import annotations

from enum import StrEnum

from tubelet.redaction import redacted
from tubelet.video.content import Content


class Status(StrEnum):
    """What became of a row; the value is what tables hold."""

    OK = "ok"
    """The video can be used; in predictions: it has an answer."""
    ERROR = "error"
    """It cannot, and ``error_code`` and ``error`` say why."""
    GONE = "gone"
    """Of a manifest: the object is no longer in the listing."""
    NOT_VIDEO = "not_video"
    """Of a manifest: content and name say that it is something else."""


class ErrorCode(StrEnum):
    """Why a row failed, or what its answer lacks; the value is what tables hold and never changes."""

    NOT_FOUND = "not_found"
    """The object is gone."""
    DENIED = "denied"
    """The store, or the file system, forbids reading it."""
    CREDENTIALS = "credentials"
    """The store does not take the credentials (none, wrong, expired), so no object can be read."""
    CHANGED = "changed"
    """Its content is no longer that of the etag that was asked for."""
    IO_ERROR = "io_error"
    """It could not be read: the network or the store failed."""
    BAD_URI = "bad_uri"
    """Its address is malformed, or of a kind of store that is not known."""
    NOT_VIDEO = "not_video"
    """Recognised as something else: a still, text, an archive, sound alone."""
    OPEN_ERROR = "open_error"
    """No container that FFmpeg can read."""
    NO_VIDEO_STREAM = "no_video_stream"
    """A container without a picture track."""
    NO_DECODER = "no_decoder"
    """A picture track in a codec that this FFmpeg lacks."""
    ZERO_FRAMES = "zero_frames"
    """It opens, but holds no frame."""
    NO_FRAMES = "no_frames"
    """The part that was asked for holds no frame."""
    DECODE_ERROR = "decode_error"
    """It holds packets, but none of them decodes."""
    PARTIAL = "partial"
    """It breaks off; with an answer: the last good frame was repeated, else fewer than half decode."""
    TOO_LARGE = "too_large"
    """Over a budget: bytes of the object, pixels per frame, frames decoded."""
    OUT_OF_MEMORY = "out_of_memory"
    """Over the memory budget."""
    TIMEOUT = "timeout"
    """Not done by the deadline."""
    CRASH = "crash"
    """The decoder process died."""
    NON_FINITE = "non_finite"
    """The model's answer holds NaN or infinity."""
    INTERNAL_ERROR = "internal_error"
    """A fault of ours in this one row."""


TRANSIENT = frozenset(
    {
        ErrorCode.NOT_FOUND,
        ErrorCode.DENIED,
        ErrorCode.CREDENTIALS,
        ErrorCode.CHANGED,
        ErrorCode.IO_ERROR,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.TIMEOUT,
        ErrorCode.CRASH,
        ErrorCode.INTERNAL_ERROR,
    }
)
"""What the store or the machine did: no verdict on the content, so worth another try."""

MAX_ATTEMPTS = 3
"""Runs after which a transient error stays: a file that always hangs the decoder must not keep a job from
being done."""


def to_retry(code: str | None, attempts: int | None) -> bool:
    """Whether a row that has ended with ``code`` in so many runs is tried again by the same command."""
    return code in TRANSIENT and (attempts or 0) < MAX_ATTEMPTS


class DecodeError(Exception):
    """A video, or the part of it that was asked for, cannot be decoded.

    ``code`` is an :class:`ErrorCode`; ``str(error)`` is the message for people.
    """

    def __init__(self, code: str, message: str, content: Content | None = None) -> None:
        message = redacted(message)
        super().__init__(message)
        self.code = ErrorCode(code)
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

"""The child's answers as bytes of a fixed form: numbers, short texts, arrays of doubles; nothing else.

Whatever does not keep to it, or cannot be true, is a :class:`tubelet.video.wire.MalformedError`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.video.content import Content
from tubelet.video.errors import ClipError, DecodeError, ErrorCode
from tubelet.video.info import VideoInfo
from tubelet.video.wire import MalformedError

Times = npt.NDArray[np.float64]

_MOST_TEXT = 4096
# What a terminal or a log would take for a command; tabs and line ends are none.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# The fields of a VideoInfo in their order, and their kind: text, integer, double, flag; in capitals, or none.
_INFO = (
    ("codec", "s"),
    ("width", "q"),
    ("height", "q"),
    ("rotation", "q"),
    ("fps", "D"),
    ("vfr", "?"),
    ("frames", "Q"),
    ("duration_s", "D"),
    ("start_s", "d"),
    ("pix_fmt", "s"),
    ("stream_index", "q"),
    ("size_bytes", "Q"),
    ("container", "s"),
    ("coded_width", "q"),
    ("coded_height", "q"),
    ("sample_aspect", "d"),
    ("mirrored", "?"),
    ("interlaced", "?"),
    ("color_space", "q"),
    ("color_range", "q"),
    ("still", "?"),
)
_FAILURES: tuple[type[Exception], ...] = (ClipError, ValueError, TypeError, RuntimeError)


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Frames lie in the shared memory sent beside it, one clip after another; ``shapes`` has each clip's.
    """

    failure: Exception | None = None
    info: VideoInfo | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    times_s: tuple[Times, ...] = ()
    error: DecodeError | None = None
    segment: int | None = None

    def to_bytes(self) -> bytes:
        """As it goes over the socket."""
        out = _Writer()
        out.put("?q", self.segment is not None, self.segment or 0)
        out.failure(self.failure)
        out.failure(self.error)
        out.put("?", self.info is not None)
        if self.info is not None:
            out.info(self.info)
        out.put("I", len(self.shapes))
        for shape, times_s in zip(self.shapes, self.times_s, strict=True):
            out.put("4Q", *shape)
            out.doubles(times_s)
        return b"".join(out.parts)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> Reply:
        """Read what the child sent.

        Raises:
            MalformedError: it is no reply.
        """
        read = _Reader(data)
        try:
            known, segment = read.take("?q")
            failure, error = read.failure(), read.failure()
            (described,) = read.take("?")
            info = read.info() if described else None
            shapes: list[tuple[int, ...]] = []
            times: list[Times] = []
            for _ in range(*read.take("I")):
                shapes.append(read.take("4Q"))
                times.append(read.doubles())
        except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as wrong:
            raise MalformedError(f"no reply ({wrong})") from wrong
        if read.left or (failure is None and info is None):
            raise MalformedError("no reply")
        if error is not None and not isinstance(error, DecodeError):
            raise MalformedError("no reply")
        for shape, times_s in zip(shapes, times, strict=True):
            if shape[0] != len(times_s) or shape[3] != 3 or not all(shape):
                raise MalformedError(f"clips of {shape}")
        return cls(failure, info, tuple(shapes), tuple(times), error, segment if known else None)


class _Writer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def put(self, form: str, *values: Any) -> None:
        self.parts.append(struct.pack(f"!{form}", *values))

    def text(self, text: str) -> None:
        data = text.encode("utf-8", "replace")[:_MOST_TEXT]
        data = data.decode("utf-8", "ignore").encode("utf-8")  # no half of a character at the end
        self.put("H", len(data))
        self.parts.append(data)

    def doubles(self, values: Any) -> None:
        array = np.asarray(values, "<f8")
        self.put("I", len(array))
        self.parts.append(array.tobytes())

    def info(self, info: VideoInfo) -> None:
        for name, kind in _INFO:
            value = getattr(info, name)
            if kind == "s":
                self.text(value)
            elif kind in "DQ":
                self.put("?" + _plain(kind), value is not None, value or 0)
            else:
                self.put(kind, value)
        self.put("?", info.keyframes_s is not None)
        if info.keyframes_s is not None:
            self.doubles(info.keyframes_s)

    def failure(self, failure: Exception | None) -> None:
        if failure is None:
            self.put("b", -2)
        elif isinstance(failure, DecodeError):
            self.put("b", -1)
            self.text(failure.code)
            self.text(failure.message)
            self.text(failure.content or "")
        else:
            number = next((i for i, kind in enumerate(_FAILURES) if type(failure) is kind), -1)
            said = str(failure) if number >= 0 else f"{type(failure).__name__}: {failure}"
            self.put("b", number % len(_FAILURES))
            self.text(said)


class _Reader:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data, self._at = bytes(data), 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"!{form}", self._data, self._at)
        self._at += struct.calcsize(f"!{form}")
        return found

    def _bytes(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError("cut off")
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self) -> str:
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", self._bytes(*self.take("H")).decode("utf-8"))

    def doubles(self) -> Times:
        (count,) = self.take("I")
        return np.frombuffer(self._bytes(8 * count), "<f8").astype(np.float64)

    def info(self) -> VideoInfo:
        found: dict[str, Any] = {}
        for name, kind in _INFO:
            if kind == "s":
                found[name] = self.text()
            elif kind in "DQ":
                known, value = self.take("?" + _plain(kind))
                found[name] = value if known else None
            else:
                (found[name],) = self.take(kind)
        (known,) = self.take("?")
        found["keyframes_s"] = tuple(self.doubles().tolist()) if known else None
        return VideoInfo(**found)

    def failure(self) -> Exception | None:
        (number,) = self.take("b")
        if number == -2:
            return None
        if number == -1:
            code, message, content = self.text(), self.text(), self.text()
            return DecodeError(ErrorCode(code), message, Content(content) if content else None)
        if not 0 <= number < len(_FAILURES):
            raise ValueError(f"failure {number}")
        failure: Exception = _FAILURES[number](self.text())
        return failure


def _plain(kind: str) -> str:
    return {"D": "d", "Q": "q"}[kind]

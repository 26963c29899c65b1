"""A video as a strip of small frames, one JPEG."""

from __future__ import annotations

import base64
import io
import logging
import math
import queue
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tubelet.storage import StorageOptions
from tubelet.storage.opener import ObjectOpener
from tubelet.video import DecodeError, Limits, Sandbox, ShortSide, Times, Uniform, View

_QUALITY = 72
# The format's limit is 65,535; what is wider than this is no picture for people.
_MOST_PIXELS_WIDE = 32_000


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StripRequest:
    """Which frames to show.

    Attributes:
        times_s: the seconds that the model saw; frames are picked evenly among them. Empty: over the whole.
    """

    uri: str
    etag: str | None
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Strip:
    """One video.

    Attributes:
        jpeg: the file; None: there is no picture, and ``missing`` says why.
        size: the picture's width and height.
    """

    jpeg: bytes | None
    missing: str | None = None
    size: tuple[int, int] | None = None

    @property
    def data_uri(self) -> str | None:
        """The picture inside a URI, for a page that has no other file."""
        if self.jpeg is None:
            return None
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


class StripMaker:
    """Makes strips on several decode processes; a context manager."""

    def __init__(
        self,
        options: StorageOptions,
        *,
        frames: int = 8,
        height: int = 96,
        workers: int = 2,
        limits: Limits | None = None,
    ) -> None:
        self._options, self._frames, self._height = options, frames, height
        self._sandboxes: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        self._all = [Sandbox(limits or Limits(deadline_s=30)) for _ in range(workers)]
        for sandbox in self._all:
            self._sandboxes.put(sandbox)
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> StripMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for sandbox in self._all:
            sandbox.close()

    def strips(self, requests: Iterable[StripRequest]) -> Iterator[Strip]:
        """One strip per request, in order."""
        return self._pool.map(self.strip, requests)

    def strip(self, request: StripRequest) -> Strip:
        """Decode and join the frames of one video; a video that fails is a strip without a picture."""
        sandbox = self._sandboxes.get()
        try:
            source = ObjectOpener(request.uri, None, request.etag or None, self._options)
            decoded = sandbox.decode_views(source, [self._view(request.times_s)])
            picture = _join(decoded.clips[0][0], self._height)
            return Strip(_jpeg(picture), size=picture.size)
        except DecodeError as error:
            return Strip(None, f"No frames: {error.message}")
        except Exception as error:  # one picture less is no reason to be without the page
            _log.warning("no picture of %s: %s", request.uri, error)
            _log.debug("no picture", exc_info=True)
            return Strip(None, f"No picture: {error}")
        finally:
            self._sandboxes.put(sandbox)

    def _view(self, times_s: Sequence[float]) -> View:
        known = [t for t in times_s if math.isfinite(t)]
        space = ShortSide(self._height, None)
        if not known:
            return View(Uniform(self._frames), space)
        picked = np.linspace(0, len(known) - 1, min(self._frames, len(known))).round().astype(int)
        return View(Times(tuple(sorted(known)[i] for i in picked)), space)


def _join(frames: npt.NDArray[np.uint8], height: int) -> Image.Image:
    """Frames uint8 ``(T, H, W, 3)`` side by side, scaled to ``height``, two pixels apart."""
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    whole = len(frames) * (width + 2) - 2
    if whole > _MOST_PIXELS_WIDE:
        raise ValueError(f"frames of {frames.shape[2]}x{frames.shape[1]} are too wide for a strip")
    strip = Image.new("RGB", (whole, height), (255, 255, 255))
    for i, frame in enumerate(frames):
        small = Image.fromarray(frame)
        if small.size != (width, height):
            small = small.resize((width, height), Image.Resampling.BILINEAR)
        strip.paste(small, (i * (width + 2), 0))
    return strip


def _jpeg(image: Image.Image) -> bytes:
    buffer: Any = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return bytes(buffer.getvalue())

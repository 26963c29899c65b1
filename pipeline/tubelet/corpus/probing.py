"""Probe many objects at once, in order, each in a decode process that can be killed."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from tubelet.config import UserError, usable_cores
from tubelet.storage import ObjectInfo, StorageOptions
from tubelet.storage.opener import ObjectOpener
from tubelet.video import (
    Decoded,
    DecodeError,
    DecoderStartError,
    ErrorCode,
    Limits,
    Sandbox,
    Status,
    VideoInfo,
    View,
)

T = TypeVar("T")
R = TypeVar("R")

_MESSAGE_CHARS = 500
# Requests to S3 are waited for, so probing pays beyond the number of cores; each worker costs a process.
_MOST_WORKERS = 32
_EXTENSION = re.compile(r"\.([a-z0-9]{1,8})", re.IGNORECASE)
# Names that promise a video. An animated GIF, WebP or AVIF is one as well, but such a name promises none.
_VIDEO_EXTENSIONS = re.compile(
    r"3g2|3gp|amv|asf|avi|av1|divx|dv|f4v|flv|h26[1345]|hevc|ivf|m[12]v|m2ts?|m4v|mjpe?g|mk3d|mkv|mod|mov|"
    r"mp2v|mp4|mpe?g?|mpv|mts|mxf|nut|obu|og[mv]|qt|rmvb|rm|swf|tod|ts|vob|vro|webm|wmv|y4m",
    re.IGNORECASE,
)


def default_workers() -> int:
    """Twice the cores this process may use, at least 4 and at most 32."""
    return max(4, min(2 * usable_cores(), _MOST_WORKERS))


class Prober:
    """Turns objects into the video columns of the manifest; a context manager that ends its processes.

    Args:
        workers: objects probed at once; each worker has a decode process of its own.
        options: how to reach the store.
        limits: what one object may cost.
    """

    def __init__(self, workers: int, options: StorageOptions, limits: Limits) -> None:
        self._options = options
        self._limits = limits
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="probe")
        self._own = threading.local()
        self._sandboxes: list[Sandbox] = []

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=error[0] is None, cancel_futures=True)
        for sandbox in self._sandboxes:
            sandbox.close()

    def map(self, items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
        """``work`` of each item in the order of the items, with a bounded number of them under way.

        An item that waits behind a slow one stays in memory: the window bounds how many can.
        """
        window = self._workers * 8
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def rows(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows with ``uri, path, etag, size``, and to them the columns of :meth:`probe`."""

        def work(row: dict[str, Any]) -> dict[str, Any]:
            return row | self.probe(ObjectInfo(row["uri"], row["path"], row["etag"], row["size"]))

        return self.map(rows, work)

    def probe(self, info: ObjectInfo) -> dict[str, Any]:
        """The columns ``status`` to ``keyframes_s`` of one object; an error is a row, never an exception.

        What is recognised as no video has the code ``not_video`` (see :func:`judge`).

        Raises:
            DecoderStartError: this machine cannot start a decoder.
            UserError: the store takes the credentials for no object.
        """
        try:
            found = self._sandbox().probe(self.opener(info))
            return (
                failed(ErrorCode.NOT_VIDEO, "no video: one still picture") if found.still else describe(found)
            )
        except DecodeError as error:
            if error.code == ErrorCode.CREDENTIALS:
                raise UserError(
                    f"{error}\nno manifest was written: mend it, then go on with the same command"
                ) from error
            if error.content is not None and not promises_video(info.path):
                return failed(ErrorCode.NOT_VIDEO, f"no video: {error.content}")
            return failed(error.code, str(error))
        except DecoderStartError:
            raise  # no object's fault: without a decoder there is nothing to say of any
        except Exception as error:  # a fault of ours in one object must not cost the other million
            return failed(ErrorCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}")

    def decode(self, info: ObjectInfo, views: Sequence[View]) -> Decoded:
        """Clips of one object.

        Raises:
            DecodeError: why there are none.
            DecoderStartError: this machine cannot start a decoder.
        """
        return self._sandbox().decode_views(self.opener(info), views)

    def opener(self, info: ObjectInfo) -> ObjectOpener:
        """Opens one object, of the version that was listed."""
        return ObjectOpener(info.uri, info.size_bytes, info.etag or None, self._options)

    def _sandbox(self) -> Sandbox:
        sandbox: Sandbox | None = getattr(self._own, "sandbox", None)
        if sandbox is None:
            sandbox = self._own.sandbox = Sandbox(self._limits)
            self._sandboxes.append(sandbox)
        return sandbox


def describe(info: VideoInfo) -> dict[str, Any]:
    """The manifest's columns of a video that could be probed."""
    names = ("codec", "width", "height", "rotation", "fps", "vfr", "frames", "duration_s", "start_s")
    columns: dict[str, Any] = {name: getattr(info, name) for name in names}
    # Packed: rows wait for others, and as objects of Python the times take four times the memory.
    keyframes = None if info.keyframes_s is None else np.array(info.keyframes_s, np.float64)
    return {"status": Status.OK, "error_code": None, "error": None, **columns, "keyframes_s": keyframes}


def failed(code: str, message: str) -> dict[str, Any]:
    """The manifest's columns of an object that cannot be used."""
    return {"status": Status.ERROR, "error_code": code, "error": " ".join(message.split())[:_MESSAGE_CHARS]}


def promises_video(path: str) -> bool:
    """Whether a name lets one expect a video: it has the extension of one, or none."""
    name = path.rpartition("/")[2]
    found = _EXTENSION.fullmatch(name, max(name.rfind("."), 0))
    return found is None or bool(_VIDEO_EXTENSIONS.fullmatch(found[1]))


def judge(row: Mapping[str, Any], *, named: bool) -> Status:
    """The status of a row that was probed, now or earlier.

    What is recognised as no video is no error either, unless its name or a label file takes it for a video.

    Args:
        row: the manifest's row.
        named: a label file names the object.
    """
    if row["error_code"] == ErrorCode.NOT_VIDEO:
        return Status.ERROR if named or promises_video(row["path"]) else Status.NOT_VIDEO
    return Status(row["status"])

"""Probe many objects at once, in order, each in a decode process that can be killed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tubelet.config import usable_cores
from tubelet.storage import ObjectInfo, StorageOptions
from tubelet.storage.opener import ObjectOpener
from tubelet.video import DecodeError, DecoderStartError, ErrorCode, Limits, Sandbox, VideoInfo

T = TypeVar("T")
R = TypeVar("R")

_MESSAGE_CHARS = 500
# Requests to S3 are waited for, so probing pays beyond the number of cores; each worker costs a process.
_MOST_WORKERS = 32


def default_workers() -> int:
    """Twice the cores this process may use, at least 4 and at most 32."""
    return max(4, min(2 * usable_cores(), _MOST_WORKERS))


class Prober:
    """Turns objects into the video columns of the manifest; a context manager that ends its processes.

    Args:
        workers: objects probed at once; each worker has a decode process of its own.
        deadline_s: seconds one object may take.
    """

    def __init__(self, workers: int, options: StorageOptions, deadline_s: float) -> None:
        self._options = options
        self._limits = Limits(deadline_s=deadline_s)
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

    def probe(self, info: ObjectInfo) -> dict[str, Any]:
        """The columns ``status`` to ``keyframes_s`` of one object; an error is a row, never an exception.

        Raises:
            DecoderStartError: this machine cannot start a decoder.
        """
        opener = ObjectOpener(info.uri, info.size_bytes, info.etag, self._options)
        try:
            return describe(self._sandbox().probe(opener))
        except DecodeError as error:
            return failed(error.code, str(error))
        except DecoderStartError:
            raise  # no object's fault: without a decoder there is nothing to say of any
        except Exception as error:  # a fault of ours in one object must not cost the other million
            return failed(ErrorCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}")

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
    keyframes = None if info.keyframes_s is None else list(info.keyframes_s)
    return {"status": "ok", "error_code": None, "error": None, **columns, "keyframes_s": keyframes}


def failed(code: str, message: str) -> dict[str, Any]:
    """The manifest's columns of an object that cannot be used."""
    return {"status": "error", "error_code": code, "error": " ".join(message.split())[:_MESSAGE_CHARS]}

"""Figures of what runs now, which Ray shows to Prometheus with ``ray_`` before each name.

Where Ray is not connected nothing is counted. The dashboard of ``cluster/kuberay`` asks for these names.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

DECODE_UTILISATION = "tubelet_decode_utilisation"
GPU_UTILISATION = "tubelet_gpu_utilisation"
_QUEUE_LENGTH = "tubelet_queue_length"

# Ray adds `_total` to the names of counters.
_DESCRIPTIONS = {
    "tubelet_videos": "videos opened, those that failed too",
    "tubelet_clips": "clips cut",
    "tubelet_bytes": "bytes read of videos",
    "tubelet_errors": "videos that failed, by the code of the reason",
    _QUEUE_LENGTH: "blocks or tasks that wait before a stage",
    DECODE_UTILISATION: "share of the time that a decode worker decodes",
    GPU_UTILISATION: "share of the time that a GPU's predictor or rank has work for it",
}
_TAGS = {"tubelet_errors": ("code",), _QUEUE_LENGTH: ("stage",)}
# Ray reports every ten seconds, and forgets a gauge that is not set again within minutes.
_REPORT_EVERY_S = 5.0


def count_decoded(videos: int, clips: int, size_bytes: int, errors: Counter[str]) -> None:
    """Add to the totals of this process.

    Args:
        videos: opened, those that failed among them.
        clips: cut.
        size_bytes: read.
        errors: failed ones by the code of the reason.
    """
    if not _connected():
        return
    for name, count in (("videos", videos), ("clips", clips), ("bytes", size_bytes)):
        if count:
            _metric("Counter", f"tubelet_{name}").inc(count)
    for code, count in errors.items():
        _metric("Counter", "tubelet_errors").inc(count, tags={"code": code})


def set_queue_length(stage: str, blocks: int) -> None:
    """Say how many blocks wait before a stage."""
    if _connected():
        _metric("Gauge", _QUEUE_LENGTH).set(blocks, tags={"stage": stage})


class Utilisation:
    """The share of the time that this process works, as a gauge that a thread keeps up to date.

    Args:
        name: of the gauge.
        shown: whether there is anything to tell of (not of GPUs where there are none).
    """

    def __init__(self, name: str, *, shown: bool = True) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._busy_s = 0.0
        self._since_s: float | None = None  # at work since then
        self._reported_s, self._reported_busy_s = time.monotonic(), 0.0
        if shown and _connected():
            _Reporter.of_process().watch(self)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time inside counts as work."""
        self._switch(on=True)
        try:
            yield
        finally:
            self._switch(on=False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside does not, though it lies inside of :meth:`working`."""
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    def share(self) -> float:
        """The share since the last call, from 0 to 1."""
        with self._lock:
            now_s = time.monotonic()
            busy_s = self._busy_s + (0.0 if self._since_s is None else now_s - self._since_s)
            passed_s, worked_s = now_s - self._reported_s, busy_s - self._reported_busy_s
            self._reported_s, self._reported_busy_s = now_s, busy_s
        return min(1.0, max(0.0, worked_s / max(passed_s, 1e-9)))

    def _switch(self, *, on: bool) -> None:
        with self._lock:
            now_s = time.monotonic()
            if self._since_s is not None:
                self._busy_s += now_s - self._since_s
            self._since_s = now_s if on else None


class _Reporter:
    """Sets the gauges of a process from time to time, for as long as there is somebody whose they are."""

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[Utilisation] = weakref.WeakSet()
        threading.Thread(target=self._run, name="utilisation", daemon=True).start()

    @staticmethod
    @cache
    def of_process() -> _Reporter:
        return _Reporter()

    def watch(self, one: Utilisation) -> None:
        self._watched.add(one)

    def _run(self) -> None:
        while True:
            time.sleep(_REPORT_EVERY_S)
            shares: dict[str, list[float]] = {}
            for one in list(self._watched):
                shares.setdefault(one.name, []).append(one.share())
            for name, values in shares.items():
                if _connected():
                    _metric("Gauge", name).set(sum(values) / len(values))


def _connected() -> bool:
    """Whether this process is one of a Ray cluster; what runs without Ray does not import it."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _metric(kind: Literal["Counter", "Gauge"], name: str) -> Any:
    from ray.util import metrics

    return getattr(metrics, kind)(name, description=_DESCRIPTIONS[name], tag_keys=_TAGS.get(name, ()))

"""The decode stage: rows that name videos become rows that hold uint8 tubelets.

A video that fails is a row with a typed reason and zeros for tubelets: never an exception, never another
video in its place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.clips.draws import generator
from tubelet.clips.spec import ClipSpec, TrainCrop
from tubelet.clips.tubelets import Uint8, write_tubelets
from tubelet.storage import StorageOptions, is_remote, normalise_uri
from tubelet.storage.opener import ObjectOpener
from tubelet.video import Decoded, DecodeError, Limits, Sandbox, Source, View

Batch = dict[str, npt.NDArray[Any]]

# What the decode stage needs to know of a video.
REFERENCE = ("key", "uri", "etag", "size", "clip_start_s", "clip_end_s")


class ClipDecoder:
    """A callable for ``map_batches`` in an actor; owns one killable decode process.

    Rows need ``key, uri, etag, size`` and may have ``clip_start_s, clip_end_s`` (a segment) and, with
    ``train`` given, ``epoch, repeat`` and ``view`` (-1: a training clip; else that one of ``views``). All
    columns pass through. Added, for n rows of V views (no V with ``train``):

    - ``tubelets`` uint8 ``(n, V, tokens, t*h*w*3)``, zeros where the row failed;
    - ``clip_times_s`` float64 ``(n, V, T)``, seconds of the frames taken, NaN where the row failed;
    - ``error_code``, ``error``: '' or the reason; 'partial' still has its tubelets;
    - ``decode_s`` float64 ``(n,)``, wall time of the row.

    A column ``weight``, where there is one, becomes 0 for rows that failed.
    """

    def __init__(
        self,
        spec: ClipSpec,
        *,
        views: tuple[int, int] = (1, 1),
        train: TrainCrop | None = None,
        seed: int = 0,
        storage: StorageOptions | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._spec, self._train, self._seed = spec, train, seed
        self._views = spec.test_views(*views)
        self._storage = storage or StorageOptions()
        self._sandbox = Sandbox(limits or Limits())

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Batch:
        n, v = len(batch["key"]), 1 if self._train else len(self._views)
        tubelets = np.zeros((n, v, self._spec.tokens, self._spec.token_bytes), np.uint8)
        times = np.full((n, v, self._spec.frames), np.nan)
        codes, errors, seconds = [""] * n, [""] * n, np.zeros(n)
        for i in range(n):
            started_s = time.monotonic()
            row = {name: column[i] for name, column in batch.items()}
            codes[i], errors[i] = self._decode_row(row, tubelets[i], times[i])
            seconds[i] = time.monotonic() - started_s
        out: Batch = dict(batch)
        out["tubelets"] = tubelets[:, 0] if self._train else tubelets
        out["clip_times_s"] = times[:, 0] if self._train else times
        out["error_code"], out["error"] = np.array(codes, object), np.array(errors, object)
        out["decode_s"] = seconds
        if "weight" in batch:
            failed = np.isnan(times[:, 0, 0])
            out["weight"] = np.where(failed, 0.0, batch["weight"]).astype(np.float32)
        return out

    def close(self) -> None:
        """End the decode process."""
        self._sandbox.close()

    def _decode_row(
        self, row: Mapping[str, Any], tubelets: Uint8, times: npt.NDArray[np.float64]
    ) -> tuple[str, str]:
        """Fill one row's ``(V, tokens, bytes)`` and ``(V, T)``; returns its error code and message."""
        try:
            decoded = self._sandbox.decode_views(
                self._source(row), self._views_of(row), window_s=_window_s(row)
            )
        except DecodeError as error:
            return error.code, error.message
        self._write(decoded, tubelets, times)
        return (decoded.error.code, decoded.error.message) if decoded.error else ("", "")

    def _write(self, decoded: Decoded, tubelets: Uint8, times: npt.NDArray[np.float64]) -> None:
        for k, clip in enumerate(decoded.clips):
            frames, times[k] = clip
            write_tubelets(frames, self._spec.tubelet, tubelets[k])

    def _views_of(self, row: Mapping[str, Any]) -> Sequence[View]:
        if self._train is None:
            return self._views
        if row.get("view", -1) >= 0:
            return [self._views[int(row["view"])]]
        names = (self._seed, int(row["epoch"]), str(row["key"]), int(row.get("repeat", 0)))
        return [self._train.view(self._spec, generator(*names))]

    def _source(self, row: Mapping[str, Any]) -> Source:
        uri = str(row["uri"])
        if not is_remote(uri):
            return normalise_uri(uri)
        size = row.get("size")
        size_bytes = None if size is None or (isinstance(size, float) and math.isnan(size)) else int(size)
        return ObjectOpener(uri, size_bytes, row.get("etag"), self._storage)


def _window_s(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The segment of the video that the row means, or None for the whole."""
    start_s, end_s = (_seconds(row.get(name)) for name in ("clip_start_s", "clip_end_s"))
    if start_s is None and end_s is None:
        return None
    return (start_s or 0.0, math.inf if end_s is None else end_s)


def _seconds(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)

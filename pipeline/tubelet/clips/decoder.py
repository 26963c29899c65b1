"""The decode stage: rows that name videos become rows that hold uint8 tubelets.

A video that fails is a row with a typed reason and zeros for tubelets: never an exception, never another
video in its place.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.clips.draws import generator
from tubelet.clips.spec import ClipSpec, TrainCrop
from tubelet.clips.tubelets import Uint8, write_tubelets
from tubelet.config import UserError
from tubelet.metrics import DECODE_UTILISATION, Utilisation, count_decoded
from tubelet.storage import StorageOptions, normalise_uri
from tubelet.storage.opener import ObjectOpener
from tubelet.video import Decoded, DecodeError, DecoderStartError, ErrorCode, Limits, Sandbox, Source, View
from tubelet.video.errors import ClipError

Batch = dict[str, npt.NDArray[Any]]

# What the decode stage needs to know of a video.
REFERENCE = ("key", "uri", "etag", "size", "clip_start_s", "clip_end_s")


def numbered(name: str, spec: int) -> str:
    """The column ``name`` of clip spec number ``spec``: the first one's has no number."""
    return name if spec == 0 else f"{name}_{spec}"


class ClipDecoder:
    """A callable for ``map_batches`` in an actor; owns one killable decode process.

    Rows need ``key, uri, etag, size`` and may have ``clip_start_s, clip_end_s`` (a segment), ``source`` (the
    bytes of the video, in place of ``uri``) and, with ``train`` given, ``epoch, repeat`` and ``view`` (-1: a
    training clip; else that one of ``views``). Null, NaN, ``''`` and -1 mean that something is not known. All
    columns pass through. Added, for n rows of V views (no V with ``train``):

    - ``tubelets`` uint8 ``(n, V, tokens, t*h*w*3)``, zeros where the row failed;
    - ``clip_times_s`` float64 ``(n, V, T)``, seconds of the frames taken, NaN where the row failed;
    - ``error_code``, ``error``: '' or the reason; 'partial' without ``failed`` still has its tubelets;
    - ``failed`` bool ``(n,)``;
    - ``decode_s`` float64 ``(n,)``, wall time of the row.

    Further specs have columns of their own (``tubelets_1``, ``clip_times_s_1``, see :func:`numbered`); one
    pass over the video makes them all. A column ``weight``, where there is one, becomes 0 for rows that
    failed.

    Args:
        specs: the clips to cut, one or several.
        views: temporal clips x spatial crops of each.
        train: cut training clips instead; then there is one spec.
        draws: with ``train``: so many training clips of each row, those of epochs 0 to ``draws - 1``, and its
            ``views`` after them, all in one pass: V is ``draws`` and the number of views.
        seed: of their draws.
        storage: how to reach the videos.
        limits: what one video may cost.
    """

    def __init__(
        self,
        specs: ClipSpec | Sequence[ClipSpec],
        *,
        views: tuple[int, int] = (1, 1),
        train: TrainCrop | None = None,
        draws: int = 0,
        seed: int = 0,
        storage: StorageOptions | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._specs = (specs,) if isinstance(specs, ClipSpec) else tuple(specs)
        if train is not None and len(self._specs) != 1:
            raise ValueError(f"training clips are of one spec, given {len(self._specs)}")
        self._train, self._seed, self._draws = train, seed, draws
        self._per_spec = draws + views[0] * views[1] if draws or not train else 1
        self._views = [view for spec in self._specs for view in spec.test_views(*views)]
        self._storage = storage or StorageOptions()
        self._sandbox = Sandbox(limits or Limits())
        self._utilisation = Utilisation(DECODE_UTILISATION)

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Batch:
        """Decode a batch of rows, one after the other.

        Raises:
            DecoderStartError: this machine cannot start a decoder, which is no row's error.
        """
        with self._utilisation.working():
            return self._decode_all(batch)

    def _decode_all(self, batch: Mapping[str, npt.NDArray[Any]]) -> Batch:
        n, v = len(batch["key"]), self._per_spec
        read_before = self._sandbox.bytes_read
        tubelets = [np.zeros((n, v, spec.tokens, spec.token_bytes), np.uint8) for spec in self._specs]
        times = [np.full((n, v, spec.frames), np.nan) for spec in self._specs]
        codes, errors = np.full(n, "", object), np.full(n, "", object)
        failed, seconds = np.zeros(n, np.bool_), np.zeros(n)
        for i in range(n):
            started_s = time.monotonic()
            row = {name: column[i] for name, column in batch.items()}
            try:
                decoded = self._decode(row)
            except DecodeError as error:
                codes[i], errors[i], failed[i] = error.code.value, error.message, True
            else:
                self._write(decoded, [t[i] for t in tubelets], [t[i] for t in times])
                if decoded.error is not None:
                    codes[i], errors[i] = decoded.error.code.value, decoded.error.message
            seconds[i] = time.monotonic() - started_s
        clips = int(np.count_nonzero(~failed)) * v * len(self._specs)
        count_decoded(n, clips, self._sandbox.bytes_read - read_before, Counter(codes[failed].tolist()))
        out: Batch = dict(batch)
        for s in range(len(self._specs)):
            one = self._train is not None and not self._draws
            out[numbered("tubelets", s)] = tubelets[s][:, 0] if one else tubelets[s]
            out[numbered("clip_times_s", s)] = times[s][:, 0] if one else times[s]
        out |= {"error_code": codes, "error": errors, "failed": failed, "decode_s": seconds}
        if "weight" in batch:
            out["weight"] = np.where(failed, 0.0, batch["weight"]).astype(np.float32)
        return out

    def close(self) -> None:
        """End the decode process."""
        self._sandbox.close()

    def _decode(self, row: Mapping[str, Any]) -> Decoded:
        """All clips of one row.

        Raises:
            DecodeError: whatever went wrong with it.
            DecoderStartError: this machine cannot start a decoder.
        """
        try:
            source = source_of(row, self._storage)
            return self._sandbox.decode_views(source, self._views_of(row), window_s=window_of(row))
        except (DecodeError, DecoderStartError):  # without a decoder there is nothing to say of any video
            raise
        except UserError as error:
            raise DecodeError(ErrorCode.BAD_URI, str(error)) from error
        except ClipError as error:
            raise DecodeError(ErrorCode.NO_FRAMES, str(error)) from error
        except Exception as error:  # a fault of ours in one row must not end the job
            raise DecodeError(ErrorCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}") from error

    def _write(
        self, decoded: Decoded, tubelets: Sequence[Uint8], times: Sequence[npt.NDArray[np.float64]]
    ) -> None:
        """Fill the ``(V, tokens, bytes)`` and ``(V, T)`` of each spec with one row's clips."""
        for number, (frames, frame_times_s) in enumerate(decoded.clips):
            s, view = divmod(number, self._per_spec)
            write_tubelets(frames, self._specs[s].tubelet, tubelets[s][view])
            times[s][view] = frame_times_s

    def _views_of(self, row: Mapping[str, Any]) -> Sequence[View]:
        if self._train is None:
            return self._views
        if self._draws:
            key, spec = str(row["key"]), self._specs[0]
            draws = [generator(self._seed, epoch, key, 0) for epoch in range(self._draws)]
            return [*(self._train.view(spec, draw) for draw in draws), *self._views]
        if row.get("view", -1) >= 0:
            return [self._views[int(row["view"])]]
        names = (self._seed, int(row["epoch"]), str(row["key"]), int(row.get("repeat", 0)))
        return [self._train.view(self._specs[0], generator(*names))]


def source_of(row: Mapping[str, Any], storage: StorageOptions) -> Source:
    """Where the bytes of the row's video come from.

    Raises:
        UserError: an address of no kind that is known.
    """
    data = row.get("source")
    if data is not None:
        return bytes(data)
    size = _number(row.get("size"))
    size_bytes = None if size is None or size < 0 else int(size)
    return ObjectOpener(normalise_uri(str(row["uri"])), size_bytes, row.get("etag") or None, storage)


def window_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The segment of the video that the row means, or None for the whole."""
    start_s, end_s = (_number(row.get(name)) for name in ("clip_start_s", "clip_end_s"))
    if start_s is None and end_s is None:
        return None
    return (start_s or 0.0, math.inf if end_s is None else end_s)


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)

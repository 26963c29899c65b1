"""What runs in the actors: requests become tubelets, tubelets become rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tubelet.clips import ClipSpec
from tubelet.clips.tubelets import write_tubelets
from tubelet.inference.predictor import ModelJob, Predictor
from tubelet.labelling.plan import ShardReader
from tubelet.storage import StorageOptions
from tubelet.storage.opener import ObjectOpener
from tubelet.video import DecodeError, Limits, Sandbox, View

Batch = dict[str, npt.NDArray[Any]]

# What the store says of an object whose etag is no longer the manifest's; it reaches us through the decode
# process.
_CHANGED = "changed since it was listed"


@dataclass(frozen=True)
class DecodeJob:
    """What a decode worker makes of each request.

    Attributes:
        specs: the clips that the models take, without repeats; one pass over the video makes them all.
        views: ``(temporal, spatial)`` views of each.
        block_bytes: clips are handed on in blocks of about this size.
    """

    specs: tuple[ClipSpec, ...]
    views: tuple[int, int] = (1, 1)
    storage: StorageOptions = field(default_factory=StorageOptions)
    limits: Limits = field(default_factory=Limits)
    block_bytes: int = 32 << 20

    @property
    def rows_at_once(self) -> int:
        """Requests whose clips lie in memory together."""
        return max(1, min(16, self.block_bytes // max(self.clip_bytes, 1)))

    @property
    def clip_bytes(self) -> int:
        """Bytes that one decoded request hands to the predictor."""
        views = self.views[0] * self.views[1]
        return sum(spec.tokens * spec.token_bytes * views for spec in self.specs)


class RequestDecoder:
    """A callable for ``map_batches`` in an actor; owns one killable decode process.

    Takes slices of the plan. Gives, a few requests at a time, their columns and, for clip spec number ``s``
    of V views: ``tubelets_s`` uint8 ``(n, V, tokens, bytes)``, zeros where the row failed; ``times_s_s``
    float64 ``(n, V, T)``, NaN where it failed; and ``error_code``, ``error`` ('' where all is well;
    'partial' has its tubelets), ``failed`` bool and ``decode_s``.
    """

    def __init__(self, job: DecodeJob, plan: ShardReader) -> None:
        self._job, self._plan = job, plan
        self._sandbox = Sandbox(job.limits)
        by_spec = [spec.test_views(*job.views) for spec in job.specs]
        self._views: list[View] = [view for views in by_spec for view in views]
        self._owner = [s for s, views in enumerate(by_spec) for _ in views]

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """``shard, first, count``: slices of the plan."""
        for name, first, count in zip(batch["shard"], batch["first"], batch["count"], strict=True):
            rows = self._plan.read(str(name), int(first), int(count))
            for start in range(0, rows.num_rows, self._job.rows_at_once):
                yield self._decode(rows.slice(start, self._job.rows_at_once))

    def _decode(self, rows: pa.Table) -> Batch:
        n, batch = rows.num_rows, {name: rows[name].to_numpy() for name in rows.column_names}
        clips = [
            np.zeros((n, self._count(s), x.tokens, x.token_bytes), np.uint8)
            for s, x in enumerate(self._job.specs)
        ]
        times = [np.full((n, self._count(s), x.frames), np.nan) for s, x in enumerate(self._job.specs)]
        codes, errors, seconds, failed = [""] * n, [""] * n, np.zeros(n), np.zeros(n, np.bool_)
        for i in range(n):
            started_s = time.monotonic()
            row = {name: column[i] for name, column in batch.items()}
            codes[i], errors[i], failed[i] = self._row(row, [c[i] for c in clips], [t[i] for t in times])
            seconds[i] = time.monotonic() - started_s
        made = {f"tubelets_{s}": c for s, c in enumerate(clips)} | {
            f"times_s_{s}": t for s, t in enumerate(times)
        }
        words = {"error_code": np.array(codes, object), "error": np.array(errors, object)}
        return {**batch, **made, **words, "failed": failed, "decode_s": seconds}

    def close(self) -> None:
        """End the decode process."""
        self._sandbox.close()

    def _count(self, spec: int) -> int:
        return self._owner.count(spec)

    def _row(
        self, row: Mapping[str, Any], clips: Sequence[npt.NDArray[Any]], times: Sequence[npt.NDArray[Any]]
    ) -> tuple[str, str, bool]:
        size, etag = int(row["size"]), str(row["etag"])
        source = ObjectOpener(str(row["uri"]), None if size < 0 else size, etag or None, self._job.storage)
        try:
            decoded = self._sandbox.decode_views(source, self._views, window_s=_window_s(row))
        except DecodeError as error:
            changed = _CHANGED in error.message and error.code == "io_error"
            return "changed" if changed else error.code, error.message, True
        except ValueError as error:  # a window that holds no frame
            return "no_frames", str(error), True
        done = [0] * len(clips)
        for owner, clip in zip(self._owner, decoded.clips, strict=True):
            frames, frame_times_s = clip
            write_tubelets(frames, self._job.specs[owner].tubelet, clips[owner][done[owner]])
            times[owner][done[owner]] = frame_times_s
            done[owner] += 1
        partial = decoded.error
        return (partial.code, partial.message, False) if partial else ("", "", False)


def _window_s(row: Mapping[str, Any]) -> tuple[float, float] | None:
    start_s, end_s = float(row["start_s"]), float(row["end_s"])
    if math.isnan(start_s) and math.isnan(end_s):
        return None
    return (0.0 if math.isnan(start_s) else start_s, math.inf if math.isnan(end_s) else end_s)


class DecodePredict:
    """Both stages in one actor: where they share the CPU, handing clips over would cost more than it wins."""

    def __init__(
        self, decode: DecodeJob, plan: ShardReader, models: Callable[[], Sequence[ModelJob]], threads: int
    ) -> None:
        self._decoder = RequestDecoder(decode, plan)
        self._predictor = Predictor(models, threads)

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """Slices of the plan to tables of rows."""
        for decoded in self._decoder(batch):
            yield self._predictor(decoded)

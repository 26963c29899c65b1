"""What a worker makes of a batch of clips where features are wanted: one row per clip."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from tubelet.clips import Batch
from tubelet.clips.decoder import numbered
from tubelet.inference.feature_table import FEATURES, TableShape
from tubelet.inference.forward import Batches, Forward
from tubelet.inference.predictor import Answer, Ints, or_null, who, with_costs
from tubelet.inference.schema import column_of
from tubelet.video import ErrorCode
from tubelet.vivit import ViViT, fold_normalisation


@dataclass(frozen=True)
class FeatureJob:
    """A model whose features are kept, as a worker needs it.

    Attributes:
        identity, sampling: what the rows say of their origin.
        shape: the columns of its rows.
    """

    model: ViViT | None
    identity: str
    sampling: str
    shape: TableShape

    def without_model(self) -> FeatureJob:
        """The same without the weights, which travel on their own way."""
        return dataclasses.replace(self, model=None)

    def with_model(self, model: ViViT) -> FeatureJob:
        """The same with weights."""
        return dataclasses.replace(self, model=model)

    def answering(self, device: torch.device, *, compiled: bool) -> Answer:
        """Rows of its features (see :func:`feature_rows`)."""
        if self.model is None:
            raise ValueError("the job's model is missing: ship it with the job")
        frames = self.shape.column == FEATURES
        forward = FrameForward(self.model, device) if frames else ClipForward(self.model, device, compiled)
        return partial(feature_rows, self, forward)


class FrameForward:
    """Features of single frames in float32: a head that learns on them fits the whole model."""

    def __init__(self, model: ViViT, device: torch.device) -> None:
        self._batches = Batches(model.config, device)
        self._model = fold_normalisation(model.eval().requires_grad_(False)).to(device)
        self._width = model.config.grid[0] * 2 * model.config.dim

    @torch.inference_mode()
    def __call__(self, tubelets: npt.NDArray[np.uint8], rows: Ints) -> npt.NDArray[np.float32]:
        """``tubelets`` uint8 ``(n, V, tokens, bytes)`` to float32 ``(rows, V, values)``."""
        found = [f.float().cpu() for f in self._batches(self._model.frame_features, tubelets, rows)]
        joined = torch.cat(found) if found else torch.zeros(0)
        return joined.reshape(len(rows), tubelets.shape[1], self._width).numpy()


class ClipForward:
    """The pooled features of each clip, as labelling keeps them."""

    def __init__(self, model: ViViT, device: torch.device, compiled: bool = False) -> None:
        self._width = model.config.pooled_width
        self._forward = Forward(model, device, compiled=compiled)

    def __call__(self, tubelets: npt.NDArray[np.uint8], rows: Ints) -> npt.NDArray[np.float32]:
        """``tubelets`` uint8 ``(n, V, tokens, bytes)`` to float32 ``(rows, V, values)``."""
        views = tubelets.shape[1]
        clips = (rows[:, None] * views + np.arange(views)).reshape(-1)
        found = self._forward(tubelets.reshape(-1, 1, *tubelets.shape[2:]), clips).features
        return found.reshape(len(rows), views, self._width)


def feature_rows(
    job: FeatureJob, forward: FrameForward | ClipForward, batch: Batch, number: int = 0
) -> pa.Table:
    """The rows of model ``number``: one per clip, one per video that failed."""
    wanted = np.flatnonzero((batch["models"].astype(np.int64) >> number) & 1)
    mine = {name: batch[name][wanted] for name in ("error_code", "error", "failed")}
    places = np.flatnonzero(~mine["failed"])
    started_s = time.monotonic()
    values = forward(batch[numbered("tubelets", 0)], wanted[places])
    predict_s = (time.monotonic() - started_s) / max(len(places), 1)
    finite = np.isfinite(values).all((1, 2))
    if not finite.all():
        bad = places[~finite]
        mine["failed"][bad], mine["error_code"][bad] = True, ErrorCode.NON_FINITE.value
        mine["error"][bad] = "the encoder's features are not finite numbers"
        places, values = places[finite], values[finite]
    table, rows = _table(job, batch, wanted, mine, values)
    return with_costs(table, batch, rows, predict_s)


def _table(
    job: FeatureJob, batch: Batch, wanted: Ints, mine: Batch, values: npt.NDArray[np.float32]
) -> tuple[pa.Table, Ints]:
    """The rows' own columns, and of which row of ``batch`` each is."""
    views, failed = batch[numbered("tubelets", 0)].shape[1], mine["failed"]
    each = np.repeat(np.arange(len(wanted)), np.where(failed, 1, views))
    rows, bad = wanted[each], failed[each]
    first = np.flatnonzero(np.diff(each, prepend=-1))
    clip = np.arange(len(each)) - np.repeat(first, np.diff(np.append(first, len(each))))
    times = batch[numbered("clip_times_s", 0)][rows, clip]
    full = np.full((len(rows), job.shape.width), np.nan, job.shape.dtype)
    full[~bad] = values.reshape(-1, job.shape.width)
    schema = job.shape.schema()
    columns: dict[str, Any] = {
        **who(batch, rows, {name: column[each] for name, column in mine.items()}),
        "clip": clip,
        "clip_times_s": [None if no else list(map(float, t)) for t, no in zip(times, bad, strict=True)],
        "start_s": or_null(batch["clip_start_s"][rows]),
        "end_s": or_null(batch["clip_end_s"][rows]),
        "model": [job.identity] * len(rows),
        "sampling": [job.sampling] * len(rows),
        "attempts": [0] * len(rows),  # counted by the sink, which knows earlier runs
    }
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), job.shape.width)
        if name == job.shape.column
        else column_of(columns[name], schema.field(name).type)
        for name in schema.names
    ]
    return pa.Table.from_arrays(arrays, schema=schema), rows

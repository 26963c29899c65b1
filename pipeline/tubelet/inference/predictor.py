"""Decoded requests to rows: the forward pass, and what the rows say of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from tubelet.clips import Batch
from tubelet.clips.decoder import numbered
from tubelet.inference.blocks import batch_of
from tubelet.inference.cells import cells_of
from tubelet.inference.forward import Forward, Outcome
from tubelet.inference.schema import RowShape, column_of
from tubelet.metrics import GPU_UTILISATION, Utilisation
from tubelet.video import ErrorCode, Status
from tubelet.vivit import ViViT

# Compiling costs about half a minute: it pays once a GPU has more than this many clips to see.
COMPILE_FROM_CLIPS = 5_000

Ints = npt.NDArray[np.int64]


Answer = Callable[[Batch, int], pa.Table]
"""The rows of model number n for a batch of decoded requests, with ``request, decode_s, predict_s``."""


class Job(Protocol):
    """One model of a job, as a worker needs it, and what its rows say of it."""

    def without_model(self) -> Self:
        """The same without the weights, which travel on their own way."""
        ...

    def with_model(self, model: ViViT) -> Self:
        """The same with weights."""
        ...

    def answering(self, device: torch.device, *, compiled: bool) -> Answer:
        """What makes its rows on ``device``."""
        ...


@dataclass(frozen=True)
class ModelJob:
    """A model that labels.

    Attributes:
        identity, sampling: what the rows say of their origin.
        spec: number of the decoded clip that this model takes.
        labels: names of the classes by head.
        shape: the columns of its rows.
        topk: how many labels a row holds.
        multilabel: probabilities by sigmoid, each for itself, instead of softmax.
        most_clips: clips in one forward pass; None: what fits the memory.
    """

    model: ViViT | None
    identity: str
    sampling: str
    spec: int
    labels: Mapping[str, Sequence[str]]
    shape: RowShape
    topk: int = 5
    multilabel: bool = False
    most_clips: int | None = None

    def without_model(self) -> ModelJob:
        """The same without the weights, which travel on their own way."""
        return dataclasses.replace(self, model=None)

    def with_model(self, model: ViViT) -> ModelJob:
        """The same with weights."""
        return dataclasses.replace(self, model=model)

    def answering(self, device: torch.device, *, compiled: bool) -> Answer:
        """Rows of what its forward pass says (see :func:`rows_of`)."""
        if self.model is None:
            raise ValueError("the job's model is missing: ship it with the job")
        forward = Forward(
            self.model,
            device,
            multilabel=self.multilabel,
            most_clips=self.most_clips,
            compiled=compiled,
        )
        return partial(rows_of, self, forward)


class Predictor:
    """A callable for ``map_batches`` in an actor: decoded requests become rows, one IPC table per model.

    A call gives the columns ``model`` int32 (number of the model) and ``table`` binary: what :meth:`tables`
    gives, as an Arrow IPC stream. A whole table in a cell keeps its exact types, whichever columns happen to
    be all null in a batch.

    Args:
        models: called once in the worker; gives the models on the CPU.
        threads: CPU threads of the forward pass; None: as they are.
        clips: how many clips the whole job has, which decides whether to compile.
    """

    def __init__(
        self, models: Callable[[], Sequence[Job]], threads: int | None = 1, *, clips: int = 0
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if threads is not None:
            torch.set_num_threads(max(1, threads))
        compiled = device.type == "cuda" and clips >= COMPILE_FROM_CLIPS
        self._answers = [job.answering(device, compiled=compiled) for job in models()]
        self._busy = Utilisation(GPU_UTILISATION, shown=device.type == "cuda")

    def __call__(self, batch: Batch) -> Batch:
        """A cell for each model that has rows in the batch."""
        return cells_of(self.tables(batch))

    def tables(self, batch: Batch) -> list[pa.Table]:
        """The rows of each model."""
        with self._busy.working():
            return [answer(batch, number) for number, answer in enumerate(self._answers)]


class BlockPredictor(Predictor):
    """As :class:`Predictor`, on blocks that :class:`tubelet.inference.workers.BlockDecoder` made."""

    def __call__(self, block: pa.Table) -> Batch:
        """A cell for each model that has rows in the block."""
        return super().__call__(batch_of(block))


def rows_of(job: ModelJob, forward: Forward, batch: Batch, number: int = 0) -> pa.Table:
    """The rows of model ``number``: its schema, with ``request``, ``decode_s``, ``predict_s`` beside."""
    wanted = np.flatnonzero((batch["models"].astype(np.int64) >> number) & 1)
    mine = {name: batch[name][wanted] for name in ("error_code", "error", "failed")}
    places = np.flatnonzero(~mine["failed"])
    started_s = time.monotonic()
    outcome = forward(batch[numbered("tubelets", job.spec)], wanted[places])
    predict_s = (time.monotonic() - started_s) / max(len(places), 1)
    if not outcome.finite.all():
        places, outcome = _without_non_finite(outcome, places, mine)
    columns = {**who(batch, wanted, mine), **_how(batch, job, wanted, mine["failed"])}
    columns |= _answers(job, outcome, places, len(wanted))
    schema = job.shape.schema()
    arrays = [column_of(columns[name], schema.field(name).type) for name in schema.names]
    return with_costs(pa.Table.from_arrays(arrays, schema=schema), batch, wanted, predict_s)


def with_costs(table: pa.Table, batch: Batch, rows: Ints, predict_s: float) -> pa.Table:
    """``table`` with ``request``, ``decode_s`` and ``predict_s`` beside.

    Args:
        rows: of the batch, one for each row of ``table``.
    """
    table = table.append_column("request", pa.array(batch["request"][rows], pa.int64()))
    table = table.append_column("decode_s", pa.array(batch["decode_s"][rows], pa.float64()))
    return table.append_column("predict_s", pa.array(np.full(len(rows), predict_s)))


def _without_non_finite(outcome: Outcome, places: Ints, mine: Batch) -> tuple[Ints, Outcome]:
    """Make errors of rows whose logits are no numbers: a score is a number, or it is not there."""
    bad = places[~outcome.finite]
    mine["failed"][bad], mine["error_code"][bad] = True, ErrorCode.NON_FINITE.value
    mine["error"][bad] = "the model's logits are not finite numbers"
    return places[outcome.finite], outcome.take(outcome.finite)


def who(batch: Batch, rows: Ints, mine: Batch) -> dict[str, Any]:
    """The columns that say which video a row is about, and whether it went well.

    Args:
        rows: of the batch.
        mine: ``failed``, ``error_code`` and ``error`` of these rows.
    """
    return {
        "key": _strings(batch["key"][rows]),
        "window": batch["window"][rows],
        "uri": _strings(batch["uri"][rows]),
        "etag": _strings(batch["etag"][rows]),
        "status": [(Status.ERROR if bad else Status.OK).value for bad in mine["failed"]],
        "error_code": [str(code) or None for code in mine["error_code"]],
        "error": [text or None for text in _strings(mine["error"])],
    }


def _how(batch: Batch, job: ModelJob, rows: Ints, failed: npt.NDArray[np.bool_]) -> dict[str, Any]:
    times = batch[numbered("clip_times_s", job.spec)][rows]
    return {
        "views": [0 if bad else times.shape[1] for bad in failed],
        "clip_times_s": [
            None if bad else list(map(float, t.reshape(-1))) for t, bad in zip(times, failed, strict=True)
        ],
        "start_s": or_null(batch["clip_start_s"][rows]),
        "end_s": or_null(batch["clip_end_s"][rows]),
        "model": [job.identity] * len(rows),
        "sampling": [job.sampling] * len(rows),
        "attempts": [0] * len(rows),  # counted by the sink, which knows earlier runs
    }


def _answers(job: ModelJob, outcome: Outcome, places: Ints, n: int) -> dict[str, Any]:
    """The columns that hold what the model said; rows that are not in ``places`` are null."""
    columns: dict[str, Any] = {}
    for head, suffix in job.shape.suffixes.items():
        names, probabilities = job.labels[head], outcome.probabilities[head]
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : job.topk]
        best = np.take_along_axis(probabilities, order, axis=1)
        labels = [[names[j] for j in row] for row in order]
        columns[f"label{suffix}"] = _spread([row[0] for row in labels], places, n)
        columns[f"score{suffix}"] = _spread([float(row[0]) for row in best], places, n)
        columns[f"topk_labels{suffix}"] = _spread(labels, places, n)
        columns[f"topk_scores{suffix}"] = _spread(best.tolist(), places, n)
        if job.shape.scores:
            columns[f"scores{suffix}"] = _spread(list(probabilities), places, n)
        if job.shape.logits:
            columns[f"logits{suffix}"] = _spread(list(outcome.logits[head]), places, n)
    if job.shape.embedding is not None:
        columns["embedding"] = _spread(list(outcome.features.astype(job.shape.embedding)), places, n)
    return columns


def _spread(values: Sequence[Any], places: Ints, n: int) -> list[Any]:
    out: list[Any] = [None] * n
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return out


def _strings(values: npt.NDArray[Any]) -> list[str | None]:
    """Text that Arrow can hold: a decoder's message may quote bytes that are no UTF-8."""
    return [None if value is None else str(value).encode("utf-8", "replace").decode() for value in values]


def or_null(values: npt.NDArray[Any]) -> list[float | None]:
    """Numbers, None for NaN."""
    return [None if value is None or np.isnan(value) else float(value) for value in values]

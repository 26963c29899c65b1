"""Tubelets to rows: one forward pass for a batch of clips, views averaged, the best labels picked."""

from __future__ import annotations

import dataclasses
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tubelet.inference.schema import ERROR, OK, RowShape, column_of
from tubelet.vivit import ViViT, ViViTConfig, fold_normalisation

Batch = dict[str, npt.NDArray[Any]]

# Compiling costs about half a minute: it pays once a GPU has more than this many clips to see.
COMPILE_FROM_CLIPS = 5_000
_CPU_ACTIVATION_BYTES = 256 << 20


@dataclass(frozen=True)
class ModelJob:
    """One model of the job, as a worker needs it.

    Attributes:
        identity, sampling: what the rows say of their origin.
        spec: number of the decoded clip that this model takes.
        labels: names of the classes by head.
        topk: how many labels a row holds.
        multilabel: probabilities by sigmoid, each for itself, instead of softmax.
    """

    model: ViViT | None
    identity: str
    sampling: str
    spec: int
    labels: Mapping[str, Sequence[str]]
    shape: RowShape
    topk: int = 5
    multilabel: bool = False

    def without_model(self) -> ModelJob:
        """The same without the weights, which travel on their own way."""
        return dataclasses.replace(self, model=None)

    def with_model(self, model: ViViT) -> ModelJob:
        """The same with weights."""
        return dataclasses.replace(self, model=model)


class Predictor:
    """A callable for ``map_batches`` in an actor: decoded requests become rows, one IPC table a model.

    Args:
        models: called once in the worker; gives the models on the CPU.
        threads: CPU threads of the forward pass.
        clips: how many clips the whole job has, which decides whether to compile.

    Returns of a call: columns ``model`` int32 (number of the model) and ``table`` binary: the rows of that
        model's
    schema as an Arrow IPC stream, with ``request`` int64, ``decode_s`` and ``predict_s`` beside them. A
    whole table in a cell keeps its exact types, whichever columns happen to be all null in a batch.
    """

    def __init__(self, models: Callable[[], Sequence[ModelJob]], threads: int = 1, *, clips: int = 0) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(max(1, threads))
        self._jobs = list(models())
        compiled = self._device.type == "cuda" and clips >= COMPILE_FROM_CLIPS
        self._forward = [_Forward(job, self._device, compiled=compiled) for job in self._jobs]

    def __call__(self, batch: Batch) -> Batch:
        tables = [self._table(number, batch) for number in range(len(self._jobs))]
        numbers = [number for number, table in enumerate(tables) if table.num_rows]
        cells = np.empty(len(numbers), object)
        cells[:] = [_ipc(tables[number]) for number in numbers]
        return {"model": np.array(numbers, np.int32), "table": cells}

    def _table(self, number: int, batch: Batch) -> pa.Table:
        job = self._jobs[number]
        wanted = np.flatnonzero((batch["models"].astype(np.int64) >> number) & 1)
        good = wanted[~batch["failed"][wanted].astype(bool)]
        started_s = time.monotonic()
        outcome = self._forward[number](batch[f"tubelets_{job.spec}"], good)
        predict_s = (time.monotonic() - started_s) / max(len(good), 1)
        columns = {**_who(batch, wanted), **_how(batch, job, wanted)}
        columns |= _answers(job, outcome, np.searchsorted(wanted, good), len(wanted))
        schema = job.shape.schema()
        arrays = [column_of(columns[name], schema.field(name).type) for name in schema.names]
        table = pa.Table.from_arrays(arrays, schema=schema)
        table = table.append_column("request", pa.array(batch["request"][wanted], pa.int64()))
        table = table.append_column("decode_s", pa.array(batch["decode_s"][wanted], pa.float64()))
        return table.append_column("predict_s", pa.array(np.full(len(wanted), predict_s)))


@dataclass(frozen=True)
class Outcome:
    """Probabilities ``(n, classes)`` by head and pooled features ``(n, d)``, float32, means over views."""

    probabilities: dict[str, npt.NDArray[np.float32]]
    features: npt.NDArray[np.float32]


class _Forward:
    """One model on one device: bf16 on a GPU, normalisation folded into the embedding, batches that fit."""

    def __init__(self, job: ModelJob, device: torch.device, *, compiled: bool) -> None:
        if job.model is None:
            raise ValueError("the job's model is missing: ship it with the job")
        model = job.model
        self._act = torch.sigmoid if job.multilabel else lambda x: torch.softmax(x, -1)
        self._config = model.config
        self._device = device
        self._clips = clips_at_once(model.config, _free_bytes(device))
        model = fold_normalisation(model.eval().requires_grad_(False))
        if device.type == "cuda":
            model = model.to(device, torch.bfloat16)
        self._model: Callable[..., Any] = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def __call__(self, tubelets: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Outcome:
        """``tubelets`` uint8 ``(n, V, tokens, bytes)``; only ``rows`` of them are looked at."""
        views = tubelets.shape[1]
        logits: dict[str, list[Tensor]] = {head: [] for head in self._config.label_heads}
        features: list[Tensor] = []
        flat = tubelets.reshape(-1, *tubelets.shape[2:])
        index = (rows[:, None] * views + np.arange(views)).reshape(-1)
        start = 0
        while start < len(index):
            part = index[start : start + self._clips]
            try:
                found, pooled = self._model(self._clip(flat, part), features=True)
            except torch.OutOfMemoryError:
                if self._clips == 1:
                    raise
                self._clips = max(1, self._clips // 2)  # another process took memory of the same GPU
                continue
            start += len(part)
            by_head = found if isinstance(found, dict) else {next(iter(logits)): found}
            for head, values in by_head.items():
                logits[head].append(values.float())
            features.append(pooled.float())
        return self._outcome(logits, features, views)

    def _clip(self, flat: npt.NDArray[np.uint8], index: npt.NDArray[np.int64]) -> Tensor:
        one_run = len(index) and index[-1] - index[0] + 1 == len(index)
        clips = flat[index[0] : index[-1] + 1] if one_run else flat[index]
        with warnings.catch_warnings():
            # Blocks of the object store are read-only, and torch warns of that; they are only read here.
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.from_numpy(clips)
        return tensor.to(self._device, non_blocking=True)

    def _outcome(self, logits: dict[str, list[Tensor]], features: list[Tensor], views: int) -> Outcome:
        def mean(parts: list[Tensor], width: int) -> Tensor:
            joined = torch.cat(parts) if parts else torch.zeros(0, width)
            return joined.reshape(-1, views, joined.shape[-1]).mean(1)

        # The mean of raw logits, then softmax (or sigmoid), as the authors evaluate.
        heads = self._config.label_heads
        probabilities = {h: self._act(mean(logits[h], heads[h])).cpu().numpy() for h in heads}
        return Outcome(probabilities, mean(features, self._config.dim).cpu().numpy())


def clips_at_once(config: ViViTConfig, free_bytes: int) -> int:
    """How many clips one forward pass may take, so that its activations fit ``free_bytes``."""
    a_token = 4 * (config.token_values + 8 * config.dim + 2 * config.mlp)
    return max(1, min(256, free_bytes // (config.tokens * a_token)))


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_ACTIVATION_BYTES
    return int(torch.cuda.mem_get_info(device)[0] * 0.5)


def _who(batch: Batch, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    codes = [str(code) or None for code in batch["error_code"][rows]]
    failed = batch["failed"][rows].astype(bool)
    return {
        "key": _strings(batch["key"][rows]),
        "window": batch["window"][rows],
        "uri": _strings(batch["uri"][rows]),
        "etag": _strings(batch["etag"][rows]),
        "status": [ERROR if bad else OK for bad in failed],
        "error_code": codes,
        "error": [text or None for text in _strings(batch["error"][rows])],
    }


def _how(batch: Batch, job: ModelJob, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    times = batch[f"times_s_{job.spec}"][rows]
    failed = batch["failed"][rows].astype(bool)
    return {
        "views": [0 if bad else times.shape[1] for bad in failed],
        "clip_times_s": [
            None if bad else list(map(float, t.reshape(-1))) for t, bad in zip(times, failed, strict=True)
        ],
        "start_s": _or_null(batch["start_s"][rows]),
        "end_s": _or_null(batch["end_s"][rows]),
        "model": [job.identity] * len(rows),
        "sampling": [job.sampling] * len(rows),
    }


def _answers(job: ModelJob, outcome: Outcome, places: npt.NDArray[np.int64], n: int) -> dict[str, Any]:
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
    if job.shape.embedding is not None:
        columns["embedding"] = _spread(list(outcome.features.astype(job.shape.embedding)), places, n)
    return columns


def _spread(values: Sequence[Any], places: npt.NDArray[np.int64], n: int) -> list[Any]:
    out: list[Any] = [None] * n
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return out


def _strings(values: npt.NDArray[Any]) -> list[str]:
    """Text that Arrow can hold: a decoder's message may quote bytes that are no UTF-8."""
    return [str(value).encode("utf-8", "replace").decode() for value in values]


def _or_null(values: npt.NDArray[Any]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _ipc(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def read_cell(cell: bytes) -> pa.Table:
    """The table of one ``table`` cell."""
    return pa.ipc.open_stream(cell).read_all()

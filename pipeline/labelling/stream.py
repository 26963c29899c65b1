"""The Ray Data graph: plan shards -> requests -> decode -> predict -> small tables for the driver."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.corpus import storage
from pipeline.corpus.storage import StorageOptions
from pipeline.labelling.output import OutputFiles, patiently
from pipeline.labelling.plan import read_requests
from pipeline.labelling.predictor import ModelJob, Predictor, read_cell
from pipeline.labelling.workers import DecodeJob, DecodePredict, RequestDecoder

Batch = dict[str, npt.NDArray[Any]]
Models = Callable[[], Sequence[ModelJob]]

# What a decode process holds besides its clips: libraries, reference pictures of the codec at 1080p.
_DECODER_BYTES = 400 << 20
# Pictures of the largest size that a decoder with its threads and a filter graph keep at once, 4 bytes a
# pixel.
_PICTURES = 24
# Clips on their way from decoders to one predictor; with the blocks in the making they bound the object
# store.
_BLOCK_BYTES = 32 << 20
# Tasks that read the plan need a little CPU: with none to spare the job would hang without a word.
_PLAN_CPUS = 0.05


@dataclass(frozen=True)
class Layout:
    """Who does what, and how much of a machine it takes.

    Attributes:
        decoders: most decode actors (they also predict where ``predictors`` is 0).
        decoder_cpus: logical CPUs of each.
        predictors: most predictor actors; 0 where there is no GPU.
        gpus: GPUs of each predictor, a fraction where several share one.
        task_rows: requests a task decodes at once.
        memory_bytes: memory that a decode actor declares.
    """

    decoders: int
    decoder_cpus: float
    predictors: int
    gpus: float
    task_rows: int
    memory_bytes: int

    @property
    def object_store_bytes(self) -> int:
        """What the job keeps in the object store at most, whatever the size of the corpus."""
        blocks = 2 * self.decoders + 4 * self.predictors if self.predictors else 2 * self.decoders
        return blocks * (_BLOCK_BYTES if self.predictors else 1 << 20) + (64 << 20)


def lay_out(
    resources: Mapping[str, float],
    decode: DecodeJob,
    requests: int,
    *,
    workers: int | None = None,
    gpus: float | None = None,
    largest_pixels: int = 0,
) -> Layout:
    """Spread the work over a cluster of ``resources`` (as ``ray.cluster_resources()`` says).

    Args:
        workers: decode actors; default: one a CPU, less those that feed the GPUs.
        gpus: GPUs of each predictor; default 1 where there are any; 0 keeps off them.
    """
    cpus, found_gpus = max(1.0, resources.get("CPU", 1.0)), resources.get("GPU", 0.0)
    gpus = (1.0 if found_gpus else 0.0) if gpus is None else gpus
    predictors = int(found_gpus / gpus) if gpus and found_gpus else 0
    decoders = min(workers or max(1, int(cpus)), max(1, requests))
    # A tenth of each CPU is left for the tasks that read the plan, and for predictors beside a GPU.
    decoder_cpus = min(0.9, (0.9 * cpus - 0.2 * predictors) / decoders)
    per_task = max(1, min(16, math.ceil(requests / (decoders * 8))))
    if predictors:
        per_task = max(1, min(per_task, _BLOCK_BYTES // max(decode.clip_bytes, 1)))
    else:
        per_task = max(1, min(per_task, 4 * _BLOCK_BYTES // max(decode.clip_bytes, 1)))
    pictures_bytes = min(decode.limits.memory_bytes, _PICTURES * 4 * largest_pixels)
    memory_bytes = _DECODER_BYTES + pictures_bytes + 2 * per_task * decode.clip_bytes
    fitting = int(resources.get("memory", math.inf) // memory_bytes) if "memory" in resources else decoders
    return Layout(max(1, min(decoders, fitting)), decoder_cpus, predictors, gpus, per_task, memory_bytes)


class _ReadShard:
    """Reads request shards of the plan; a task, not an actor."""

    def __init__(self, uris: Sequence[str], options: StorageOptions) -> None:
        self._uris, self._options = list(uris), options

    def read(self, batch: Batch) -> Iterator[pa.Table]:
        for number in batch["id"]:
            uri = self._uris[int(number)]
            yield read_requests(patiently(lambda uri=uri: storage.read_bytes(uri, self._options)))  # type: ignore[misc]


def label_stream(
    shards: Sequence[str],
    files: OutputFiles,
    decode: DecodeJob,
    models: Models,
    layout: Layout,
    *,
    clips: int,
) -> Dataset:
    """A lazy dataset of ``model, table`` cells (see :class:`Predictor`), in any order."""
    _quieten()
    reader = _ReadShard([files.path(name) for name in shards], files.options)
    requests = (
        ray.data.range(len(shards), override_num_blocks=len(shards))
        .map_batches(reader.read, batch_size=1, num_cpus=_PLAN_CPUS)
        .repartition(target_num_rows_per_block=layout.task_rows, strict=True)
    )
    options = {
        "batch_size": None,
        "num_cpus": layout.decoder_cpus,
        "memory": layout.memory_bytes,
        "compute": _pool(layout.decoders),
        # A killed worker costs its rows a second decode, never the job.
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    if not layout.predictors:
        threads = max(1, int(layout.decoder_cpus))
        return requests.map_batches(DecodePredict, fn_constructor_args=(decode, models, threads), **options)
    decoded = requests.map_batches(RequestDecoder, fn_constructor_args=(decode,), **options)
    options |= {"num_cpus": 0.1, "num_gpus": layout.gpus, "memory": None, "compute": _pool(layout.predictors)}
    return decoded.map_batches(
        Predictor, fn_constructor_args=(models,), fn_constructor_kwargs={"clips": clips}, **options
    )


def _pool(size: int) -> ActorPoolStrategy:
    # From one actor up to what the cluster holds now or after it has grown; one task waits while one runs.
    return ActorPoolStrategy(min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2)


def _quieten() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def cells(dataset: Dataset) -> Iterator[tuple[int, pa.Table]]:
    """``(model number, rows)`` as they come out of the stream."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for number, cell in zip(batch["model"].to_pylist(), batch["table"].to_pylist(), strict=True):
            yield int(np.int32(number)), read_cell(cell)

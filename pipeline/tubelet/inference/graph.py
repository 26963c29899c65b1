"""The Ray Data graph: requests -> decode -> predict -> small tables for the driver.

No operator stands before the decoders: reads and repartitions are tasks of one whole CPU each, and on a
machine whose CPUs are all held by decode actors they would wait for ever, without a word.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tubelet.clips import Batch
from tubelet.clips.pace import throttle_scheduler
from tubelet.clips.queues import watch_queues
from tubelet.cluster import Cluster, quiet_ray_data, requested, wait_for
from tubelet.config import UserError
from tubelet.inference.cells import read_cell
from tubelet.inference.output import OutputFiles
from tubelet.inference.predictor import BlockPredictor
from tubelet.inference.workers import BlockDecoder, DecodeJob, DecodePredict, Reader
from tubelet.storage import is_remote

Models = Callable[[], Sequence[Any]]
"""What a stage makes rows by, called in the worker: of labelling, one :class:`Job` per model."""
Stage = Callable[[DecodeJob, Reader, Models, int], Callable[[pa.Table], Iterator[Batch]]]

# What a decode process holds besides its clips: libraries, reference pictures of the codec at 1080p.
_DECODER_BYTES = 400 << 20
# Pictures of the largest size that a decoder with its threads and a filter graph keep at once, 4 bytes per
# pixel.
_PICTURES = 24
# Clips on their way from decoders to one predictor; with the blocks in the making they bound the object
# store.
_BLOCK_BYTES = 32 << 20
# Requests of a task as long as nobody knows what they take.
_TASK_ROWS = 64
# What a task takes once that is known: with a killed worker so much is done twice, and the driver pays some
# ten milliseconds for each task.
_TASK_S = 20.0
_MOST_TASK_ROWS = 4096
# The first of a pool show soon what a request takes; its last are short, but not so that the driver pays.
_FIRST_ROWS, _LEAST_TASK_S, _TASKS_AT_END = 16, 2.0, 4
# Tasks that the driver holds, unless there are more decoders than this feeds: each costs it 5 KiB.
_MOST_TASKS = 4_000
_TASKS_PER_DECODER = 16
# Logical CPUs of a decode actor where the cluster grows; where it does not, they share what there is.
_DECODER_CPUS = 0.9
# Actors of a cluster that grows and does not say how far.
_MOST_ACTORS, _MOST_PREDICTORS = 1024, 64
# Other resources than the decoders', or Ray Data might fuse the two stages into one actor.
_PREDICTOR_CPUS = 0.2


class Requests(Protocol):
    """Where the requests come from: small tasks for Ray, and how a worker makes requests of one."""

    def tasks(self, rows: int) -> Iterable[pa.Table]:
        """Tasks of at most ``rows`` requests."""
        ...

    def reader(self) -> Reader:
        """Makes the requests of a task."""
        ...


@dataclass(frozen=True)
class TableRequests:
    """Requests that are at hand (see ``schema.REQUEST_SCHEMA``); they travel through the object store."""

    table: pa.Table

    def tasks(self, rows: int) -> Iterator[pa.Table]:
        """Slices of the table."""
        for start in range(0, len(self.table), rows):
            yield self.table.slice(start, rows)

    def reader(self) -> Reader:
        """A task is its requests."""
        return _as_it_is


def _as_it_is(task: pa.Table) -> Iterator[pa.Table]:
    yield task


@dataclass(frozen=True)
class Layout:
    """Who does what, and how much of a machine it takes.

    Attributes:
        decoders: decode actors at the start (they also predict where ``predictors`` is 0).
        decoder_cpus: logical CPUs of each.
        predictors: predictor actors at the start; 0 where there is no GPU.
        gpus: GPUs of each predictor, a fraction where several share one.
        task_rows: requests of a task.
        memory_bytes: memory that a decode actor declares.
        most_decoders, most_predictors: once the cluster has grown; 0: those of the start.
        least_tasks: the driver holds so many tasks together, or more where there are many decoders.
        gpus_later: decode actors that predict share the GPUs of nodes that join.
    """

    decoders: int
    decoder_cpus: float
    predictors: int
    gpus: float
    task_rows: int
    memory_bytes: int
    most_decoders: int = 0
    most_predictors: int = 0
    least_tasks: int = _MOST_TASKS
    gpus_later: bool = False

    @property
    def rows_at_once(self) -> int:
        """Requests whose tasks the driver holds together."""
        return self.task_rows * max(self.least_tasks, _TASKS_PER_DECODER * self.decoders)

    def measuring(self, requests: int) -> Layout:
        """For a first pass that shows what a request takes, where it is but a small part of ``requests``.

        The workers start once more after it.
        """
        first = dataclasses.replace(self, least_tasks=0)
        return first if _TASKS_PER_DECODER * first.rows_at_once <= requests else self

    def measured(self, request_s: float, requests: int) -> Layout:
        """For the ``requests`` that are left, of which each takes a decoder ``request_s``.

        Tasks are long enough to cost the driver little, and as many as spread evenly over the decoders.
        """
        wanted = int(_TASK_S / request_s) if request_s > 0 else self.task_rows
        rows = min(wanted, _MOST_TASK_ROWS, _even_rows(requests, self._soon))
        return dataclasses.replace(self, task_rows=max(1, rows), least_tasks=_MOST_TASKS)

    def next_rows(self, request_s: float, requests: int) -> int:
        """Requests of the next task of a worker pool, where ``requests`` are left; see :meth:`measured`.

        Tasks become shorter towards the end, so that the workers end together. Those of little work are as
        they were planned, whatever they take.
        """
        if self.task_rows < _TASK_ROWS:
            return self.task_rows
        if request_s <= 0:
            return _FIRST_ROWS
        longest, shortest = (max(1, int(seconds / request_s)) for seconds in (_TASK_S, _LEAST_TASK_S))
        even = math.ceil(requests / (_TASKS_AT_END * self._soon))
        return min(longest, max(shortest, even), _MOST_TASK_ROWS)

    @property
    def _soon(self) -> int:
        """Decoders that there may be before long."""
        return max(self.decoders, min(self.most_decoders, 4 * self.decoders))

    @property
    def object_store_bytes(self) -> int:
        """What the job keeps in the object store at most, whatever the size of the corpus."""
        decoders = max(self.decoders, self.most_decoders)
        blocks = 2 * decoders + 4 * max(self.predictors, self.most_predictors)
        return blocks * (_BLOCK_BYTES if self.predictors else 1 << 20) + (64 << 20)


def plan_resources(
    resources: Mapping[str, float],
    decode: DecodeJob,
    requests: int,
    *,
    workers: int | None = None,
    predictors: int | None = None,
    gpus: float | None = None,
    largest_pixels: int = 0,
    most: Mapping[str, float] | None = None,
) -> Layout:
    """Spread the work over a cluster of ``resources`` (as ``ray.cluster_resources()`` says).

    Args:
        most: what the cluster may grow to, where it grows: the work then spreads as nodes come.
        workers: decode actors; default: one per CPU, less those that feed the GPUs.
        predictors: predictor actors; default: as many as the GPUs hold; without GPUs none, and the decode
            actors predict as well.
        gpus: GPUs of each predictor; default 1 where there are any; 0 keeps off them.
    """
    cpus, found_gpus = max(1.0, resources.get("CPU", 1.0)), resources.get("GPU", 0.0)
    most_gpus = max(found_gpus, (most or {}).get("GPU", 0.0))
    gpus_later = gpus is None and not predictors
    gpus = (1.0 if most_gpus else 0.0) if gpus is None else gpus
    on_gpus = int(found_gpus / gpus) if gpus and found_gpus else 0
    most_predictors = int(most_gpus / gpus) if gpus and predictors is None else 0
    predictors = max(on_gpus, min(1, most_predictors)) if predictors is None else predictors
    decoders = min(workers or max(1, int(cpus)), max(1, requests))
    memory_bytes = _memory_bytes(decode, largest_pixels)
    if "memory" in resources:
        decoders = max(1, min(decoders, int(resources["memory"] // memory_bytes)))
    if most is not None:
        grown = int(most["CPU"]) if most.get("CPU", 0.0) > cpus else _MOST_ACTORS
        if on_gpus and most_predictors == on_gpus:
            most_predictors = max(on_gpus, _MOST_PREDICTORS)
        most_decoders = max(decoders, min(workers or grown, max(1, requests)))
        rows = _task_rows(requests, min(most_decoders, 4 * decoders))
        return Layout(
            decoders,
            _DECODER_CPUS,
            predictors,
            gpus,
            rows,
            memory_bytes,
            most_decoders,
            most_predictors,
            gpus_later=gpus_later,
        )
    # A little of each CPU is left for the predictors beside a GPU.
    decoder_cpus = min(0.9, (0.95 * cpus - _PREDICTOR_CPUS * predictors) / decoders)
    return Layout(decoders, decoder_cpus, predictors, gpus, _task_rows(requests, decoders), memory_bytes)


def _memory_bytes(decode: DecodeJob, largest_pixels: int) -> int:
    pictures_bytes = min(decode.limits.memory_bytes, _PICTURES * 4 * largest_pixels)
    return _DECODER_BYTES + pictures_bytes + 2 * decode.rows_at_once * decode.clip_bytes


def _task_rows(requests: int, decoders: int) -> int:
    """Enough tasks to spread evenly and to lose little with a killed one, however large the corpus is."""
    return max(1, min(_TASK_ROWS, _even_rows(requests, decoders)))


def _even_rows(requests: int, decoders: int) -> int:
    """The most that tasks may hold and still spread evenly."""
    return math.ceil(requests / (_TASKS_PER_DECODER * decoders))


def inference_stream(
    requests: Requests,
    decode: DecodeJob,
    models: Models,
    layout: Layout,
    *,
    clips: int,
    stage: Stage = DecodePredict,
) -> Dataset:
    """A lazy dataset of ``model, table`` cells (see :class:`Predictor`), in any order.

    Args:
        clips: how many clips the whole job has.
        stage: what decodes and predicts where there are no predictors apart.
    """
    _prepare(decode)
    # Not from_arrow: to learn each schema it runs a task, 5 ms and 40 KiB of the driver's memory.
    tasks = ray.data.from_blocks(list(requests.tasks(layout.task_rows)))
    options = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "num_cpus": layout.decoder_cpus,
        "memory": layout.memory_bytes,
        "compute": _pool(layout.decoders, layout.most_decoders),
    }
    read = requests.reader()
    if not layout.predictors:
        threads = max(1, int(layout.decoder_cpus))
        return tasks.map_batches(stage, fn_constructor_args=(decode, read, models, threads), **options)
    decoded = tasks.map_batches(BlockDecoder, fn_constructor_args=(decode, read), **options)
    options |= {"num_cpus": _PREDICTOR_CPUS, "num_gpus": layout.gpus or None, "memory": None}
    options |= {"compute": _pool(layout.predictors, layout.most_predictors), "batch_size": 1}
    return decoded.map_batches(
        BlockPredictor, fn_constructor_args=(models,), fn_constructor_kwargs={"clips": clips}, **options
    )


@contextmanager
def resources_for(
    decode: DecodeJob,
    requests: int,
    *,
    workers: int | None = None,
    predictors: int | None = None,
    gpus: float | None = None,
    largest_pixels: int = 0,
) -> Iterator[Layout]:
    """The layout on the cluster that is connected, once that has what a job can begin with.

    The autoscaler is asked for all that the job can use; see :func:`plan_resources` for the arguments.
    """
    most = Cluster.look().most
    per_gpu = (1.0 if most.get("GPU") else 0.0) if gpus is None else gpus
    least = {"CPU": 1.0} if requests else {}
    bundles = [{"CPU": 1.0}] * min(workers or int(most.get("CPU", 1)) or 1, requests)
    if requests and per_gpu and predictors != 0:
        least["GPU"] = per_gpu
        bundles += [{"GPU": per_gpu}] * (predictors or int(most.get("GPU", 0) / per_gpu) or 1)
    with requested(bundles):
        cluster = wait_for(least)
        yield plan_resources(
            cluster.now,
            decode,
            requests,
            workers=workers,
            predictors=predictors,
            gpus=gpus,
            largest_pixels=largest_pixels,
            most=cluster.most if cluster.grows else None,
        )


def check_reachable(files: OutputFiles, names: Sequence[str]) -> None:
    """Refuse an output that other nodes of the cluster cannot read: the plan of the job lies there.

    Raises:
        UserError: names the node and the flag.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if is_remote(files.uri) or len(nodes) < 2:
        return
    paths = [files.path(name) for name in names]

    def sees() -> bool:
        return all(os.path.exists(path) for path in paths)

    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        if not ray.get(ray.remote(num_cpus=0, scheduling_strategy=there)(sees).remote()):
            raise UserError(
                f"--out {files.uri} is a local path that node {node[:8]} cannot reach: "
                "set --out to s3://BUCKET/PREFIX, or to a folder that all nodes share"
            )


def _pool(size: int, most: int) -> ActorPoolStrategy:
    # From one actor up to what the cluster holds now or after it has grown; one task waits while one runs.
    return ActorPoolStrategy(
        min_size=1, max_size=max(size, most), initial_size=size, max_tasks_in_flight_per_actor=2
    )


def _prepare(decode: DecodeJob) -> None:
    context = DataContext.get_current()
    # Blocks of clips as large as the decoders make them, neither joined to larger ones nor split.
    context.target_max_block_size = max(decode.block_bytes, decode.rows_at_once * decode.clip_bytes)
    context.enable_progress_bars = False
    throttle_scheduler(context)
    watch_queues(context)
    context.print_on_execution_start = False
    quiet_ray_data()


def iter_result_tables(dataset: Dataset) -> Iterator[tuple[int, pa.Table]]:
    """``(model number, rows)`` as they come out of the stream."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for number, cell in zip(batch["model"].to_pylist(), batch["table"].to_pylist(), strict=True):
            yield int(np.int32(number)), read_cell(cell)

"""The training stream: a Ray Data graph from the plan to blocks of exactly one micro-batch.

``chunks -> requests in blocks of one micro-batch -> decode actors``, in order. With equal blocks
in order, ``streaming_split`` deals them out round robin, so micro-batch ``m`` belongs to rank ``m % world``
whatever the decode times, and any number of decode workers gives the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionOptions, TaskPoolStrategy
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import StreamingRepartition

from tubelet.clips.decoder import Batch, ClipDecoder
from tubelet.clips.pace import throttle_scheduler
from tubelet.clips.queues import watch_queues
from tubelet.clips.spec import ClipSpec, TrainCrop
from tubelet.storage import StorageOptions
from tubelet.training.plan import BatchShape, Plan
from tubelet.video import Limits

# Global batches that one row of the outermost range stands for: few enough rows for a run of a million steps.
STEPS_PER_CHUNK = 64
_MAX_SOURCE_BLOCKS = 64
# Making requests costs next to nothing; a whole CPU for it would be taken from decoding. One task at a time:
# each of several would start a process, which takes seconds of a small machine.
PLAN_CPUS = 0.1
_ONE_TASK = TaskPoolStrategy(size=1)


@dataclass(frozen=True)
class StreamConfig:
    """What the stream is made of, besides the plan."""

    spec: ClipSpec
    crop: TrainCrop
    views: tuple[int, int]  # of validation
    seed: int
    decode_workers: int
    decode_cpus: float = 1.0  # logical CPUs of a decode worker
    storage: StorageOptions = field(default_factory=StorageOptions)
    limits: Limits = field(default_factory=Limits)


def training_stream(
    plan: ray.ObjectRef[Plan], shape: BatchShape, steps: tuple[int, int], config: StreamConfig
) -> Dataset:
    """Decoded micro-batches of the global batches ``steps[0] <= step < steps[1]``, one per block, in order.

    Columns: those of :meth:`Plan.requests` and what :class:`ClipDecoder` adds.
    """
    first, last = steps
    chunks = -(-(last - first) // STEPS_PER_CHUNK)

    def plan_batches(batch: dict[str, npt.NDArray[Any]]) -> Iterator[pa.Table]:
        own: Plan = ray.get(plan)
        for chunk in batch["chunk"]:
            start = first + int(chunk) * STEPS_PER_CHUNK
            yield from own.blocks(start, min(start + STEPS_PER_CHUNK, last), shape)

    # Chunks come from memory: a read stage would hold whole CPUs, which two-core machines do not have to
    # spare.
    ids = np.array_split(np.arange(chunks), min(chunks, _MAX_SOURCE_BLOCKS))
    requests = ray.data.from_blocks([pa.table({"chunk": part}) for part in ids]).map_batches(
        plan_batches, batch_size=None, num_cpus=PLAN_CPUS, compute=_ONE_TASK
    )
    stream = _cut(requests, shape.rows).map_batches(
        TrainDecoder,
        fn_constructor_args=(config,),
        batch_size=None,
        compute=ActorPoolStrategy(size=config.decode_workers),
        num_cpus=config.decode_cpus,
        zero_copy_batch=True,
    )
    throttle_scheduler(stream.context)
    watch_queues(stream.context)
    return stream


def _cut(requests: Dataset, rows: int) -> Dataset:
    """``requests`` in blocks of ``rows``; each of their tasks makes a whole number of these.

    ``Dataset.repartition`` does it in tasks of one CPU, and has no setting for them. Where the ranks leave
    less than that, Ray Data first plans the run to its end, and ranks on nodes of one CPU wait for ever. With
    the CPUs of the tasks that plan, it becomes part of these.
    """
    cut = StreamingRepartition(
        target_num_rows_per_block=rows,
        input_dependencies=[requests._logical_plan.dag],
        ray_remote_args={"num_cpus": PLAN_CPUS},
        compute=_ONE_TASK,
    )
    return Dataset._from_parent(requests, LogicalPlan(cut, requests.context))


class TrainDecoder:
    """Decodes one micro-batch per call; rows that only fill up a micro-batch are left zero."""

    def __init__(self, config: StreamConfig) -> None:
        self._decoder = ClipDecoder(
            config.spec,
            views=config.views,
            train=config.crop,
            seed=config.seed,
            storage=config.storage,
            limits=config.limits,
        )

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> Batch:
        """Decode the rows of weight 1; the others stay zero."""
        wanted = int(np.count_nonzero(batch["weight"]))
        decoded = self._decoder({name: column[:wanted] for name, column in batch.items()})
        missing = len(batch["weight"]) - wanted
        if not missing:
            return decoded
        return {name: _fill(column, batch.get(name), missing) for name, column in decoded.items()}


def _fill(decoded: npt.NDArray[Any], given: npt.NDArray[Any] | None, missing: int) -> npt.NDArray[Any]:
    """``decoded`` and ``missing`` rows more: those given, or zeros, or ''."""
    if given is not None:
        return np.concatenate([decoded, given[-missing:]])
    if decoded.dtype == object:
        return np.concatenate([decoded, np.array([""] * missing, object)])
    return np.concatenate([decoded, np.zeros((missing, *decoded.shape[1:]), decoded.dtype)])


def stream_options() -> ExecutionOptions:
    """Execution options without which ranks would get other micro-batches than the plan says."""
    return ExecutionOptions(preserve_order=True)


def raise_block_limit(block_bytes: int) -> None:
    """Make room for blocks of ``block_bytes``: Ray Data splits larger ones without a word."""
    context = DataContext.get_current()
    context.target_max_block_size = max(context.target_max_block_size or 0, 2 * block_bytes)

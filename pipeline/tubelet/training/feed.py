"""The stream of micro-batches as Ray Train hands it to the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.data import DataIterator

from tubelet.clips import Batch
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.plan import BatchShape, Plan
from tubelet.training.resources import Resources, decode_cpus, decoders_now
from tubelet.training.stream import StreamConfig, raise_block_limit, stream_options, training_stream

NAME = "train"


@dataclass(frozen=True)
class FeedConfig:
    """From which plan, how far, and where the place to begin is found."""

    plan: ray.ObjectRef[Plan]
    stream: StreamConfig
    batch: int
    accumulate: int
    total_steps: int
    checkpoints: CheckpointStore
    resources: Resources

    def shape(self, world: int) -> BatchShape:
        """How the global batch is dealt out among ``world`` ranks."""
        return BatchShape(self.batch, world, self.accumulate)


class Feed(ray.train.DataConfig):  # type: ignore[misc]  # ray has no type information
    """Builds the stream anew whenever Ray Train starts its workers.

    Only then are the number of ranks and the nodes that are left (elastic), and the step to begin at (the
    newest checkpoint) known, so the datasets given to the trainer cannot hold the stream itself.
    """

    def __init__(self, config: FeedConfig) -> None:
        super().__init__(execution_options=stream_options(), enable_shard_locality=False)
        self._config = config

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: list[str],
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """One iterator per rank. See ``ray.train.DataConfig``."""
        config = self._config
        shape = config.shape(world_size)
        spec = config.stream.spec
        raise_block_limit(shape.rows * spec.tokens * spec.token_bytes)
        first = config.checkpoints.newest() or 0
        workers = config.stream.decode_workers
        if config.resources.elastic:
            workers = decoders_now(config.resources, world_size)
        held = config.resources.nodes
        cpus = decode_cpus(workers, config.resources.rank_cpus, worker_node_ids, held=held)
        decoding = replace(config.stream, decode_workers=workers, decode_cpus=cpus)
        stream = training_stream(config.plan, shape, (first, config.total_steps), decoding)
        return list(super().configure({NAME: stream}, world_size, worker_handles, worker_node_ids, **kwargs))


class Prefetcher:
    """An iterator that fetches its next item in a thread, from the moment it is made."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: Future[Batch] = self._pool.submit(next, items)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = self._next.result()
        self._next = self._pool.submit(next, self._items)
        return item


def micro_batches(prefetch: int) -> Iterator[Batch]:
    """This rank's micro-batches, in order, one per block.

    Rows that only fill up a micro-batch are cut off; weights of failed clips are 0.
    """
    shard = ray.train.get_dataset_shard(NAME)
    yield from shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=prefetch)

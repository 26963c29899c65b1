"""Ray Data's scheduling loop while what it made waits to be read."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, ExecutionOptions, ExecutionResources

from pipeline.clips.pace import keep_pace

_IDLE_S = 2.0


class Widen:
    """A megabyte a row."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "bytes": np.zeros((len(batch["id"]), 1 << 20), np.uint8)}


class Turns:
    """Counts the turns of the loop of the execution in this process."""

    seen = 0

    def on_execution_step(self, executor: Any) -> None:
        Turns.seen += 1

    def before_execution_starts(self, executor: Any) -> None: ...

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def _turns_while_idle(paced: bool) -> tuple[int, list[int]]:
    """Turns in the time in which the consumer reads nothing and the store has its fill; then all ids."""
    blocks = [pa.table({"id": [i]}) for i in range(100)]
    data = ray.data.from_blocks(blocks).map_batches(
        Widen, batch_size=None, compute=ActorPoolStrategy(size=1), num_cpus=0.1
    )
    limits = ExecutionResources.for_limits(object_store_memory=16 << 20)
    data.context.execution_options = ExecutionOptions(resource_limits=limits, preserve_order=True)
    if paced:
        keep_pace(data.context)
    data.context.custom_execution_callback_classes = [*data.context.custom_execution_callback_classes, Turns]
    batches = iter(data.iter_batches(batch_size=None, prefetch_batches=0))
    ids = [int(next(batches)["id"][0])]
    time.sleep(1.0)
    before = Turns.seen
    time.sleep(_IDLE_S)
    turns = Turns.seen - before
    return turns, ids + [int(i) for batch in batches for i in batch["id"]]


@pytest.mark.usefixtures("ray_cluster")
def test_the_loop_sleeps_while_nobody_reads_and_nothing_is_lost() -> None:
    paced, ids = _turns_while_idle(paced=True)
    spinning, _ = _turns_while_idle(paced=False)
    assert ids == list(range(100))
    assert paced <= 2 * _IDLE_S / 0.1
    assert spinning > 5 * paced, "Ray Data no longer spins: pipeline/clips/pace.py can go"

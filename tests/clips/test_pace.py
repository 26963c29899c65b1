"""Ray Data's scheduling loop while what it made waits to be read."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, ExecutionOptions, ExecutionResources
from tubelet.clips import pace

_DEADLINE_S = 60.0


class Widen:
    """A megabyte a row."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "bytes": np.zeros((len(batch["id"]), 1 << 20), np.uint8)}


@pytest.mark.usefixtures("ray_cluster")
def test_the_loop_sleeps_while_nobody_reads_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s: list[float] = []

    def sleep(pause_s: float) -> None:
        pauses_s.append(pause_s)
        time.sleep(pause_s)

    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    blocks = [pa.table({"id": [i]}) for i in range(60)]
    data = ray.data.from_blocks(blocks).map_batches(
        Widen, batch_size=None, compute=ActorPoolStrategy(size=1), num_cpus=0.1
    )
    limits = ExecutionResources.for_limits(object_store_memory=16 << 20)
    data.context.execution_options = ExecutionOptions(resource_limits=limits, preserve_order=True)
    pace.throttle_scheduler(data.context)
    batches = iter(data.iter_batches(batch_size=None, prefetch_batches=0))
    ids = [int(next(batches)["id"][0])]
    # From here on the store has its fill and nobody reads: Ray Data has nothing to wait for.
    pauses_s.clear()
    ends_s = time.monotonic() + _DEADLINE_S
    while 0.1 not in pauses_s and time.monotonic() < ends_s:
        time.sleep(0.05)
    longest_s = max(pauses_s, default=0.0)
    # Read to the end first: an execution left open by a failed assertion takes the test process with it.
    ids += [int(i) for batch in batches for i in batch["id"]]
    assert ids == list(range(60))
    assert longest_s == 0.1

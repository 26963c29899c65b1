"""How objects become tasks on a cluster; what these find there is looked at in `test_index_on_ray.py`."""

from __future__ import annotations

import heapq

import pytest
from tubelet.corpus.probing_on_ray import shares


@pytest.mark.parametrize("at_once", [1, 4, 24, 1000])
@pytest.mark.parametrize("count", [0, 1, 5, 800, 20_000])
def test_workers_are_done_at_about_the_same_time(count: int, at_once: int) -> None:
    rows = [{"number": number} for number in range(count)]
    tasks = list(shares(rows, at_once))
    assert [row for task in tasks for row in task] == rows
    assert all(0 < len(task) <= 64 for task in tasks)
    assert count < 800 or len(tasks) < 6 * at_once + count // 32, "each task costs something, too"
    # Each object takes as long as another, and whoever is free takes the next task.
    free_at = [0] * at_once
    for task in tasks:
        heapq.heappush(free_at, heapq.heappop(free_at) + len(task))
    assert max(free_at) <= count / at_once + 8

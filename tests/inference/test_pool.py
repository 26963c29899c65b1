"""Actors that the driver feeds: nothing is lost with one that dies, and errors come as they are."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.cells import cells_of
from tubelet.inference.graph import Layout
from tubelet.inference.output import OutputFiles
from tubelet.inference.plan import Shard, ShardRequests, Task
from tubelet.inference.pool import WorkerPool
from tubelet.inference.workers import DecodeJob

LAYOUT = Layout(2, 0.2, 0, 0.0, 64, 1 << 20)
DECODE = DecodeJob((ClipSpec(frames=4, size=32, tubelet=(2, 16, 16)),))


def _cut(rows: Callable[[int], int], *sizes: int, together: int = 1) -> list[Task]:
    shards = [Shard(f"shard {number}", size) for number, size in enumerate(sizes)]
    return list(ShardRequests(shards, OutputFiles("/nowhere")).cut(rows, together))


def test_tasks_cover_all_requests_in_even_parts() -> None:
    tasks = _cut(lambda left: 1000, 4096, 4096, 7)
    assert [task.count for task in tasks] == [1024] * 8 + [7]
    assert [task.first for task in tasks[:4]] == [0, 1024, 2048, 3072]
    asked: list[int] = []
    _cut(lambda left: asked.append(left) or 10, 25)  # type: ignore[func-returns-value]
    assert asked == [25, 12]
    assert [task.count for task in _cut(lambda left: 1000, 4096, together=14)] == [1022, 1022, 1022, 1030]
    assert [task.count for task in _cut(lambda left: 5, 14, together=14)] == [5, 5, 4]
    first, second = Task("s", 3, 5).halves()
    assert (first, second) == (Task("s", 3, 2, 1), Task("s", 5, 3, 1))
    assert Task("s", 3, 1).halves() == [Task("s", 3, 1, 1)]


def test_tasks_take_about_as_long_and_are_short_at_the_end() -> None:
    assert LAYOUT.next_rows(0.0, 10_000_000) == 16  # nothing is known yet
    assert LAYOUT.next_rows(0.05, 10_000_000) == 400
    assert LAYOUT.next_rows(1e-9, 10_000_000) == 4096
    assert LAYOUT.next_rows(60.0, 10_000_000) == 1
    assert LAYOUT.next_rows(0.05, 1600) == 200
    assert LAYOUT.next_rows(0.05, 16) == 40
    few = replace(LAYOUT, task_rows=3)
    assert few.next_rows(0.0, 96) == few.next_rows(1e-9, 96) == 3  # as it was planned


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_worker_had_when_it_died_is_done_by_another(tmp_path: Path) -> None:
    class Dies:
        """Of the first two tasks that hold request 500."""

        def __init__(self, decode: Any, read: Any, models: Any, threads: int) -> None:
            assert threads == 1

        def __call__(self, task: pa.Table) -> Iterator[Any]:
            (row,) = task.to_pylist()
            wanted = range(row["first"], row["first"] + row["count"])
            for number in range(2):
                if 500 in wanted and not (tmp_path / str(number)).exists():
                    (tmp_path / str(number)).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            yield cells_of([pa.table({"request": [*wanted]})])

    tasks = ShardRequests([Shard("only", 1000)], OutputFiles(str(tmp_path))).cut(lambda left: 100)
    with WorkerPool(DECODE, _nothing, list, LAYOUT, Dies) as pool:
        found = [table["request"].to_pylist() for _, table in pool.tables(tasks)]
    assert sorted(request for part in found for request in part) == [*range(1000)]
    # Which task it died of is told by their order: what it had ended just before may count as well.
    sizes = sorted(map(len, found))
    assert sizes[0] < 100
    assert sizes[-8:] == [100] * 8
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("where", ["at its start", "of a task"])
def test_what_a_stage_raises_ends_the_job(where: str) -> None:
    class Fails:
        def __init__(self, *arguments: Any) -> None:
            if where == "at its start":
                raise UserError("no such model")

        def __call__(self, task: pa.Table) -> Iterator[Any]:
            raise UserError("no such model")

    with WorkerPool(DECODE, _nothing, list, LAYOUT, Fails) as pool, pytest.raises(UserError) as caught:
        list(pool.tables(iter([Task("only", 0, 10)])))
    assert str(caught.value) == "no such model"


def _nothing(task: pa.Table) -> Iterator[pa.Table]:
    yield task

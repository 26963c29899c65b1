"""Which cores ranks compute on, and how many CPUs decode workers have beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from tubelet.config import usable_cores
from tubelet.training.resources import share_of, use_cores


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def test_ranks_without_gpus_share_the_cores_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    use_cores(1)
    assert torch.get_num_threads() == usable_cores()
    use_cores(2 * usable_cores())
    assert torch.get_num_threads() == 1


def test_named_cores_are_the_only_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    core = max(os.sched_getaffinity(0))
    monkeypatch.setenv("TUBELET_RANK_CORES", str(core))
    use_cores(1)
    assert os.sched_getaffinity(0) == {core}
    assert torch.get_num_threads() == usable_cores() == 1


@pytest.mark.parametrize(
    ("workers", "rooms", "each"),
    [
        (1, [1.775], 1.0),
        (2, [1.775], 0.88),
        # One worker for two nodes of one CPU: more than either of them has would never start.
        (1, [0.775, 0.775, -0.1], 0.77),
        (3, [0.775, 0.775], 0.38),
        (4, [0.2, 2.9], 0.72),
        (5, [0.02], 0.0),
        (1, [], 0.0),
    ],
)
def test_decode_workers_fit_on_the_nodes_there_are(workers: int, rooms: list[float], each: float) -> None:
    assert share_of(workers, rooms) == pytest.approx(each)

"""The plan: the same global batches for any world, no seams, resuming is a slice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tubelet.clips.decoder import REFERENCE
from tubelet.training.plan import BatchShape, Plan, Validation

sizes = st.integers(1, 40)


def plan_of(count: int, batch: int, seed: int = 0, groups: np.ndarray | None = None) -> Plan:
    columns: dict[str, object] = {name: [f"{name}{i}" for i in range(count)] for name in REFERENCE}
    columns |= {"size": list(range(count)), "clip_start_s": [None] * count, "clip_end_s": [None] * count}
    types = {"size": pa.int64(), "clip_start_s": pa.float64(), "clip_end_s": pa.float64()}
    arrays = [pa.array(columns[name], types.get(name, pa.string())) for name in REFERENCE]
    return Plan(pa.table(arrays, names=list(REFERENCE)), batch, seed, groups)


@settings(deadline=None, max_examples=40)
@given(batch=sizes, world=st.integers(1, 7), accumulate=st.integers(1, 4))
def test_parts_cover_the_batch_once(batch: int, world: int, accumulate: int) -> None:
    shape = BatchShape(batch, world, accumulate)
    bounds = [shape.bounds(part) for part in range(shape.parts)]
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(batch))
    assert max(stop - start for start, stop in bounds) == shape.rows


@settings(deadline=None, max_examples=40)
@given(
    count=sizes, batch=sizes, world=st.integers(1, 5), accumulate=st.integers(1, 3), step=st.integers(0, 30)
)
def test_world_does_not_change_the_global_batch(
    count: int, batch: int, world: int, accumulate: int, step: int
) -> None:
    plan = plan_of(count, batch)
    index, epochs, _ = plan.samples(step)
    tables = list(plan.requests(step, BatchShape(batch, world, accumulate)))
    real = pa.concat_tables([t.filter(pa.array(t["weight"].to_numpy() > 0)) for t in tables])
    assert real["index"].to_pylist() == index.tolist()
    assert real["epoch"].to_pylist() == epochs.tolist()
    assert real["key"].to_pylist() == [f"key{i}" for i in index]
    assert {len(table) for table in tables} == {BatchShape(batch, world, accumulate).rows}
    assert [set(table["part"].to_pylist()) for table in tables] == [{i} for i in range(world * accumulate)]


@settings(deadline=None, max_examples=40)
@given(count=sizes, batch=sizes)
def test_every_epoch_holds_every_video_once_and_has_no_seam(count: int, batch: int) -> None:
    plan = plan_of(count, batch)
    steps = -(-3 * count // batch)
    stream = np.concatenate([plan.samples(step)[0] for step in range(steps)])[: 3 * count]
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    plan, other = plan_of(50, 10), plan_of(50, 10, seed=1)
    assert plan.epoch(0)[0].tolist() != plan.epoch(1)[0].tolist()
    assert plan.epoch(0)[0].tolist() != other.epoch(0)[0].tolist()


def test_order_never_changes_between_versions() -> None:
    """A run of an older version must find its place again: this order is part of the format."""
    assert plan_of(8, 4).epoch(0)[0].tolist() == [6, 2, 5, 1, 7, 0, 4, 3]


def test_balanced_sampling_gives_classes_equal_places() -> None:
    groups = np.array([0] * 17 + [1] * 2 + [2], np.int64)
    plan = plan_of(20, 5, groups=groups)
    index, repeats = plan.epoch(0)
    assert sorted(Counter(groups[index].tolist()).values()) == [6, 7, 7]
    # A video drawn twice in an epoch is told apart, so that it gets another clip and crop.
    assert len({(int(i), int(r)) for i, r in zip(index, repeats, strict=True)}) == 20
    assert repeats.max() >= 5


@pytest.mark.parametrize("step", [0, 7])
def test_requests_are_the_same_when_asked_again(step: int) -> None:
    shape = BatchShape(10, 3)
    first, again = (pa.concat_tables(plan_of(23, 10).requests(step, shape)) for _ in range(2))
    assert first.equals(again)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 9), views=st.integers(1, 4), world=st.integers(1, 4), batch=st.integers(4, 9))
def test_validation_shows_every_view_once(count: int, views: int, world: int, batch: int) -> None:
    shape = BatchShape(batch, world)
    validation = Validation(count, views, every=2, total_steps=5)
    plan = replace(plan_of(7, batch), validation=validation, validation_table=plan_of(count, 1).table)
    blocks = list(plan.blocks(1, 5, shape))
    assert {len(block) for block in blocks} == {shape.rows}, "ranks are dealt blocks of equal length"
    for step in (2, 4, 5):
        own = [b for b in blocks if b["view"][0].as_py() >= 0 and b["step"][0].as_py() == step]
        assert len(own) == world * validation.rounds(shape), "as many blocks for each rank"
        rows = pa.concat_tables(own)
        real = rows.filter(pa.array(rows["weight"].to_numpy() > 0))
        pairs = list(zip(real["index"].to_pylist(), real["view"].to_pylist(), strict=True))
        assert pairs == [(i, k) for i in range(count) for k in range(views)]
    # A run resumed at step 4 has the validation of step 4 behind it.
    first = next(plan.blocks(4, 5, shape))
    assert (first["step"][0].as_py(), first["view"][0].as_py()) == (4, -1)

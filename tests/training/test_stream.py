"""The stream through Ray Data: ranks get what the plan says, whoever decodes it and however slowly."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.logical.optimizers import get_execution_plan
from support.training import write_corpus
from tubelet.clips import ClipSpec, TrainCrop
from tubelet.corpus.manifest import read_manifest
from tubelet.training.examples import load_examples
from tubelet.training.plan import BatchShape, Plan, Validation
from tubelet.training.stream import PLAN_CPUS, StreamConfig, stream_options, training_stream

SPEC = ClipSpec(frames=4, stride=1, size=32, short_side=40)
STEPS, BATCH = 5, 7

Seen = dict[tuple[int, int, int], tuple[list[int], list[float], str]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("stream")
    manifest = read_manifest(write_corpus(folder, {"train": 9, "val": 3}, broken=[2]))
    train, val = (load_examples(manifest, {"label": "label"}, split=split) for split in ("train", "val"))
    validation = Validation(len(val), 2, every=2, total_steps=STEPS)
    return Plan(train.table, BATCH, 0, None, validation, val.table)


def read(plan: Plan, shape: BatchShape, decode_workers: int, first: int = 0) -> tuple[Seen, list[list[Any]]]:
    """Every block by (step, part, view), and the order in which each rank got its own."""
    config = StreamConfig(SPEC, TrainCrop(), (2, 1), 0, decode_workers, decode_cpus=0.3)
    stream = training_stream(ray.put(plan), shape, (first, STEPS), config)
    stream.context.execution_options = stream_options()
    shards = stream.streaming_split(shape.world, equal=True)
    seen: Seen = {}
    order: list[list[Any]] = [[] for _ in shards]

    def consume(rank: int) -> None:
        for batch in shards[rank].iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            place = (int(batch["step"][0]), int(batch["part"][0]), int(batch["view"].max() >= 0))
            digest = hashlib.sha256(batch["tubelets"].tobytes()).hexdigest()
            seen[place] = (batch["index"].tolist(), batch["weight"].tolist(), digest)
            order[rank].append(place)
            time.sleep(0.05 * rank)  # ranks of different speed must not change who gets what

    threads = [threading.Thread(target=consume, args=(rank,)) for rank in range(shape.world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    return seen, order


@pytest.mark.usefixtures("ray_cluster")
def test_ranks_get_their_parts_whatever_the_number_of_decode_workers(plan: Plan) -> None:
    shape = BatchShape(BATCH, 2)
    one, order = read(plan, shape, decode_workers=1)
    three, again = read(plan, shape, decode_workers=3)
    assert one == three
    assert order == again
    for rank, places in enumerate(order):
        assert [part % 2 for _, part, _ in places] == [rank] * len(places)
        training = [place for place in places if not place[2]]
        assert training == [(step, rank, 0) for step in range(STEPS)]
    # 7 clips on 2 ranks: one row of filling a step; and the broken video has no weight either.
    indices = {i for (_, _, view), (rows, _, _) in one.items() if not view for i in rows}
    assert indices == set(range(9))
    weights = [sum(w) for (step, part, view), (_, w, _) in sorted(one.items()) if not view]
    assert sum(weights) < STEPS * BATCH
    # Step 3 resumed is step 3.
    later, _ = read(plan, shape, decode_workers=2, first=3)
    assert later == {place: block for place, block in one.items() if place in later}
    assert min(later)[0] == 3


@pytest.mark.usefixtures("ray_cluster")
def test_world_does_not_change_what_is_decoded(plan: Plan, tmp_path: Path) -> None:
    def samples(shape: BatchShape) -> list[tuple[int, list[int]]]:
        seen, _ = read(plan, shape, decode_workers=2)
        steps: dict[int, list[int]] = {}
        for (step, part, view), (rows, weights, _) in sorted(seen.items()):
            if not view:
                start, stop = shape.bounds(part)
                steps.setdefault(step, []).extend(rows[: stop - start])
                assert not any(weights[stop - start :])
        return sorted(steps.items())

    assert samples(BatchShape(BATCH, 1)) == samples(BatchShape(BATCH, 3, 2))


@pytest.mark.usefixtures("ray_cluster")
def test_all_but_decoding_takes_a_tenth_of_a_cpu(plan: Plan) -> None:
    config = StreamConfig(SPEC, TrainCrop(), (2, 1), 0, decode_workers=2, decode_cpus=0.3)
    stream = training_stream(ray.put(plan), BatchShape(BATCH, 2), (0, STEPS), config)
    operator: PhysicalOperator = get_execution_plan(stream._logical_plan)[0].dag
    least = []
    while operator.input_dependencies:
        least.append(operator.min_max_resource_requirements()[0].cpu)
        (operator,) = operator.input_dependencies
    assert least == [pytest.approx(2 * 0.3), PLAN_CPUS]

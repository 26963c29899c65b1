"""How the work is spread: on the cluster there is, and on one that grows."""

from __future__ import annotations

import socket

import pytest
import ray
from tubelet.clips import ClipSpec
from tubelet.cluster import Cluster, nodes_line, waiting_line, working_nodes
from tubelet.inference.driver import _first
from tubelet.inference.graph import plan_resources
from tubelet.inference.plan import Shard
from tubelet.inference.workers import DecodeJob

DECODE = DecodeJob((ClipSpec(frames=4, size=32, tubelet=(2, 16, 16)),))
MANY = 10_000_000


def test_size_of_a_task_does_not_grow_with_the_corpus() -> None:
    layouts = [plan_resources({"CPU": 8}, DECODE, requests) for requests in (100_000, MANY)]
    assert layouts[0] == layouts[1]
    shards = [Shard(str(i), 4096) for i in range(2500)]
    held = _first(shards, layouts[1].rows_at_once)
    assert 0 < sum(shard.rows for shard in held) <= layouts[1].rows_at_once
    assert _first(shards[:50], layouts[1].rows_at_once) == shards[:50]


def test_a_cluster_that_grows_gives_room_to_more_actors_than_it_has_cpus() -> None:
    empty = plan_resources({}, DECODE, MANY, most={"CPU": 64.0, "GPU": 0.0})
    assert (empty.decoders, empty.most_decoders, empty.predictors) == (1, 64, 0)
    # GPUs that come later are used, unless they are not wanted.
    later = plan_resources({"CPU": 2.0}, DECODE, MANY, most={"CPU": 64.0, "GPU": 8.0})
    assert (later.predictors, later.most_predictors, later.gpus) == (1, 8, 1.0)
    assert plan_resources({"CPU": 2.0}, DECODE, MANY, most={"CPU": 8.0, "GPU": 8.0}, gpus=0).predictors == 0
    # Nodes that are added by hand: nobody says how many there will be.
    by_hand = plan_resources({"CPU": 2.0, "GPU": 2.0}, DECODE, MANY, most={"CPU": 2.0, "GPU": 2.0})
    assert by_hand.predictors == 2 < by_hand.most_predictors
    assert plan_resources({"CPU": 2.0}, DECODE, MANY, workers=3, most={"CPU": 64.0}).most_decoders == 3


def test_the_line_of_one_who_waits_says_for_what_and_how_long() -> None:
    line = waiting_line(Cluster({"CPU": 2.0}, {}, True), {"CPU": 4.0, "GPU": 1.0}, 61.2)
    assert line == "waiting for nodes: the cluster has 2 of 4 CPUs, 0 of 1 GPUs (61 s so far)"


def test_a_line_says_what_became_of_the_nodes() -> None:
    assert nodes_line({"a", "b"}, {"a", "b"}) is None
    line = nodes_line({"a", "b"}, {"a"})
    assert line == "a node was lost: what was in the works there is made again; 1 node now"
    # One that took the place of another all the same.
    assert nodes_line({"a", "b", "c"}, {"a", "d"}) == (
        "2 nodes were lost: what was in the works there is made again; 2 nodes now"
    )
    assert nodes_line({"a"}, {"a", "d"}) == "a node joined; 2 nodes now"


def test_tasks_take_a_while_once_it_is_known_what_a_request_takes() -> None:
    layout = plan_resources({"CPU": 8}, DECODE, MANY)
    first = layout.measuring(MANY)
    assert first.task_rows == layout.task_rows
    assert first.rows_at_once * 16 <= MANY
    assert layout.measuring(20_000) == layout  # so little work is not worth a second start of the workers
    assert layout.measured(0.05, MANY).task_rows == 400
    assert layout.measured(10.0, MANY).task_rows == 2  # never more than a while, however slow the videos
    assert layout.measured(1e-6, MANY).task_rows == 4096
    assert layout.measured(0.05, 1280).task_rows == 10  # the last tasks spread evenly
    assert layout.measured(0.0, MANY).task_rows == layout.task_rows  # nothing was measured


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_that_ray_does_not_know_to_be_lost_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, there = ray.nodes(), working_nodes()
    assert there == 1
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        lost = nodes[0] | {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": closed.getsockname()[1]}
        monkeypatch.setattr(ray, "nodes", lambda: [*nodes, lost])
        assert working_nodes() == there

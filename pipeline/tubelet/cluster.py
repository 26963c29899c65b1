"""What a Ray cluster has, what it may grow to, and waiting until it has what a job needs."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)

# A node of a cloud takes minutes; whoever waits wants to see that something is being waited for.
SAY_EVERY_S = 30.0
_POLL_S = 1.0
_LOOK_EVERY_S = 5.0
_ANSWER_S = 3.0
# What each node keeps per group of `nodes_held`: the least that Ray counts.
_HOLD_CPUS = 0.0001


@dataclass(frozen=True)
class Cluster:
    """One look at a cluster.

    Attributes:
        now: resources of its nodes, as ``ray.cluster_resources()`` says.
        most: what it may grow to, as far as its autoscaler says so; never less than ``now``.
        grows: nodes may come: there is an autoscaler, or a head that is not there to work.
        most_nodes: nodes with CPUs that there may be, as far as its autoscaler says so; 0: it does not.
    """

    now: Mapping[str, float]
    most: Mapping[str, float]
    grows: bool
    most_nodes: int = 0

    @classmethod
    def look(cls) -> Cluster:
        """The cluster that this process is connected to."""
        import ray

        now = dict(ray.cluster_resources())
        groups = _groups()
        most = dict(now)
        for name in ("CPU", "GPU"):
            largest = sum(group.resources.get(name, 0) * max(group.max_count, 0) for group in groups)
            most[name] = max(now.get(name, 0.0), float(largest))
        nodes = sum(max(group.max_count, 0) for group in groups if group.resources.get("CPU"))
        return cls(now, most, bool(groups) or _has_idle_head(), nodes)

    def has(self, least: Mapping[str, float]) -> bool:
        """Whether all of ``least`` is there."""
        return all(self.now.get(name, 0.0) >= amount for name, amount in least.items())


def wait_for(least: Mapping[str, float]) -> Cluster:
    """Wait until the cluster has ``least``, where it may grow; says for what, and for how long by now.

    An autoscaler that does not say what there may be has been asked for nothing so far (see
    :func:`requested`): it is asked for ``least`` meanwhile.
    """
    started_s = said_s = time.monotonic()
    cluster = Cluster.look()
    if cluster.has(least) or not cluster.grows:
        return cluster
    first = True
    with nullcontext() if _groups() else _asked(_bundles(least)):
        while not cluster.has(least) and cluster.grows:
            now_s = time.monotonic()
            if first or now_s - said_s >= SAY_EVERY_S:
                first, said_s = False, now_s
                _log.warning(waiting_line(cluster, least, now_s - started_s))
            time.sleep(_POLL_S)
            cluster = Cluster.look()
    return cluster


def waiting_line(cluster: Cluster, least: Mapping[str, float], waited_s: float) -> str:
    """What is missing, and how long it has been waited for."""
    lacking = [
        f"{cluster.now.get(name, 0.0):g} of {amount:g} {name}s"
        for name, amount in least.items()
        if cluster.now.get(name, 0.0) < amount
    ]
    return f"waiting for nodes: the cluster has {', '.join(lacking)} ({waited_s:.0f} s so far)"


class NodeWatch:
    """Says when nodes of the cluster are lost or join while a job runs on it."""

    def __init__(self) -> None:
        self._alive, self._looked_s = _alive(), time.monotonic()

    def look(self) -> None:
        """Look again, where the last look was a while ago, and log what has changed."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        before, self._alive, self._looked_s = self._alive, _alive(), time.monotonic()
        line = nodes_line(before, self._alive)
        if line is not None:
            _log.warning(line)


def nodes_line(before: Collection[str], now: Collection[str]) -> str | None:
    """What became of the nodes, named by their ids; None where nothing did."""
    lost, joined = len(set(before) - set(now)), len(set(now) - set(before))
    there = f"{len(now)} node{'s' * (len(now) != 1)} now"
    if lost:
        many = "a node was" if lost == 1 else f"{lost} nodes were"
        return f"{many} lost: what was in the works there is made again; {there}"
    if joined:
        return f"{'a node' if joined == 1 else f'{joined} nodes'} joined; {there}"
    return None


def _alive() -> frozenset[str]:
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


@contextmanager
def requested(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Ask the autoscaler for room for ``bundles`` meanwhile; afterwards nodes without work may go.

    Only an autoscaler that says what there may be is asked: of more than that it would bring nothing at all.
    Ray's own (KubeRay, ``ray up``) does not say it; see :func:`wait_for` and :class:`AskedRoom`.
    """
    with _asked(bundles) if _groups() else nullcontext():
        yield


@contextmanager
def _asked(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        yield
    finally:
        request_resources(bundles=[])


def _bundles(least: Mapping[str, float]) -> list[dict[str, float]]:
    """``least``, in parts that may be on different nodes."""
    parts = [[{name: min(1.0, amount)}] * math.ceil(amount) for name, amount in least.items()]
    return [part for each in parts for part in each]


class AskedRoom:
    """Room that an autoscaler is asked for by reservations that wait; any that comes is free for others.

    Args:
        each: what one of the reservations wants, on one node.
    """

    def __init__(self, each: Mapping[str, float]) -> None:
        self._each = dict(each)
        self._waiting: list[Any] = []

    def ask(self, count: int) -> None:
        """Have ``count`` reservations wait, and give up those that have waited long enough."""
        from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

        for group in list(self._waiting):
            if len(self._waiting) > count or placement_group_table(group)["state"] == "CREATED":
                self._waiting.remove(group)
                remove_placement_group(group)
        self._waiting += [placement_group([self._each]) for _ in range(count - len(self._waiting))]


def quiet_ray_data() -> None:
    """Ray Data tells of each execution otherwise, between the lines of ours."""
    import ray.data  # noqa: F401 - which sets the level of its loggers

    logging.getLogger("ray.data").setLevel(logging.ERROR)


def working_nodes() -> int:
    """How many nodes have a CPU or more and answer: that one is lost, Ray finds out some 15 s later."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0.0) >= 1]
    with ThreadPoolExecutor(32, thread_name_prefix="nodes") as pool:
        return sum(pool.map(lambda node: answers(node["NodeManagerAddress"], node["NodeManagerPort"]), nodes))


def answers(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except OSError:
        return False
    return True


@contextmanager
def nodes_held(most: int) -> Iterator[None]:
    """Ask the autoscaler for up to ``most`` nodes meanwhile, and keep them from being taken away as idle.

    For work that reserves so little that all of it would find room on one node, and that takes a while to
    begin. One group per number of nodes: of a group that is larger than the cluster may become, an autoscaler
    brings no node at all.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    sizes = range(1, most + 1)
    groups = [placement_group([{"CPU": _HOLD_CPUS}] * size, strategy="STRICT_SPREAD") for size in sizes]
    try:
        yield
    finally:
        for group in groups:
            remove_placement_group(group)


def held_cpus(most: int) -> float:
    """The CPUs of each node that :func:`nodes_held` keeps, at most."""
    return _HOLD_CPUS * most


def _groups() -> list[Any]:
    """Groups of nodes that may have more, as far as an autoscaler tells the cluster of them."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if not config:
        return []
    return [
        group
        for group in config.node_group_configs
        if group.resources and (group.max_count == -1 or group.max_count > group.min_count)
    ]


def _has_idle_head() -> bool:
    """Whether the head offers no CPU: such a cluster waits for nodes, whoever starts them."""
    import ray

    heads = (n["Resources"] for n in ray.nodes() if n["Alive"] and "node:__internal_head__" in n["Resources"])
    return any(not head.get("CPU") for head in heads)

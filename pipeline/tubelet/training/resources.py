"""The CPUs and GPUs of ranks and decode workers.

Ranks that take all CPUs leave none to decode, and the job hangs without a word.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from tubelet.cluster import Cluster, held_cpus, requested, wait_for, working_nodes
from tubelet.config import UserError, usable_cores
from tubelet.training.recipe import Recipe
from tubelet.training.stream import PLAN_CPUS

# A rank without a GPU computes on all cores it finds; what it reserves is bookkeeping only.
CPU_RANK_CPUS = 0.125  # a binary fraction: Ray Train counts elastic ranks by floor division
GPU_RANK_CPUS = 1.0
_LEAST_DECODE_CPUS = 0.05


@dataclass(frozen=True)
class Resources:
    """What ranks and decode workers ask Ray for."""

    use_gpu: bool
    rank_cpus: float
    decode_workers: int
    elastic: bool = False
    """Whether nodes may come: each start of the ranks then looks how many decode workers there can be."""
    rank_per_node: bool = False
    """Whether there are no more ranks than nodes, but for the fewest that are wanted."""
    nodes: int = 0
    """How many nodes the autoscaler is asked for, if it may start so many; 0: those that have what the ranks
    reserve."""

    @property
    def per_rank(self) -> dict[str, float]:
        """``resources_per_worker`` of Ray Train."""
        return {"CPU": self.rank_cpus, **({"GPU": 1.0} if self.use_gpu else {})}


def plan_resources(recipe: Recipe) -> Resources:
    """Divide the cluster between the ranks of ``recipe`` and decoding.

    Where nodes may come, the autoscaler is asked for what the recipe wants, and what it can begin with is
    waited for.

    Raises:
        UserError: there are fewer GPUs than ranks, or no CPU is left to decode, and no node will come.
    """
    least, most = recipe.world
    cluster = Cluster.look()
    use_gpu = cluster.most.get("GPU", 0.0) > 0
    if cluster.grows:
        cluster = _wait(recipe, least, most, use_gpu=use_gpu)
    cpus, gpus = float(cluster.now.get("CPU", 0)), float(cluster.now.get("GPU", 0))
    if use_gpu and gpus < least:
        raise UserError(f"workers={recipe.workers}: the cluster has {gpus:g} GPUs; lower workers=")
    rank_cpus = recipe.rank_cpus or (GPU_RANK_CPUS if use_gpu else CPU_RANK_CPUS)
    ranks = min(most, int(gpus)) if use_gpu else most
    left = cpus - ranks * rank_cpus - PLAN_CPUS
    workers = recipe.decode_workers or _decoders(cpus, left, use_gpu=use_gpu)
    if left / workers < _LEAST_DECODE_CPUS:
        raise UserError(
            f"{cpus:g} CPUs are too few for workers={recipe.workers} and {workers} decode workers: "
            "lower workers=, rank_cpus= or decode_workers=, or add CPUs"
        )
    elastic = cluster.grows and not recipe.decode_workers
    # Ranks without GPUs reserve next to nothing, unless told to: all of them would be on the first node.
    rank_per_node = not use_gpu and not recipe.rank_cpus and (cluster.grows or working_nodes() > 1)
    more = rank_per_node and cluster.grows and least < most
    nodes = min(most, cluster.most_nodes or most) if more else 0
    return Resources(use_gpu, rank_cpus, workers, elastic, rank_per_node, nodes)


def _wait(recipe: Recipe, least: int, most: int, *, use_gpu: bool) -> Cluster:
    rank_cpus = recipe.rank_cpus or (GPU_RANK_CPUS if use_gpu else CPU_RANK_CPUS)
    decoders = recipe.decode_workers or 1
    need = {"CPU": least * rank_cpus + PLAN_CPUS + _LEAST_DECODE_CPUS * decoders}
    bundles = [{"CPU": rank_cpus, **({"GPU": 1.0} if use_gpu else {})}] * most
    bundles += [{"CPU": 1.0}] * (decoders + 2)
    if use_gpu:
        need["GPU"] = float(least)
    with requested(bundles):
        return wait_for(need)


def _decoders(cpus: float, left: float, *, use_gpu: bool) -> int:
    """Ranks without GPUs compute on the same cores: half of these are for decoding."""
    return max(1, int(left) if use_gpu else int(cpus // 2))


def decoders_now(resources: Resources, ranks: int) -> int:
    """Decode workers beside ``ranks`` on the nodes that there are now."""
    cpus = float(ray.cluster_resources().get("CPU", 0.0))
    left = cpus - ranks * resources.rank_cpus - PLAN_CPUS
    return _decoders(cpus, left, use_gpu=resources.use_gpu)


def decode_cpus(workers: int, rank_cpus: float, rank_nodes: Sequence[str], *, held: int = 0) -> float:
    """Logical CPUs of each of ``workers`` decode workers beside the ranks, on the nodes that there are now.

    However Ray places the decode workers, each node keeps room for the task that plans: if none does, the
    ranks wait for ever.

    Args:
        rank_nodes: the node of each rank.
        held: how many nodes are held for the ranks (see :func:`tubelet.cluster.nodes_held`).

    Raises:
        UserError: there is no room.
    """
    free = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]}
    for node in rank_nodes:
        if node in free:
            free[node] -= rank_cpus
    others = PLAN_CPUS + held_cpus(held)
    cpus = share_of(workers, [room - others for room in free.values()])
    # Beside ranks Ray Data counts whole CPUs of each node only. Where workers have more, it plans only when
    # all of them wait.
    whole = (sum(int(max(0.0, room)) for room in free.values()) - PLAN_CPUS) / workers
    if whole >= _LEAST_DECODE_CPUS:
        cpus = min(cpus, int(whole * 100) / 100)
    if cpus < _LEAST_DECODE_CPUS:
        raise UserError(
            f"no node has CPUs left for {workers} decode workers beside {len(rank_nodes)} ranks: "
            "lower rank_cpus= or decode_workers=, or add CPUs"
        )
    return cpus


def share_of(workers: int, rooms: Sequence[float]) -> float:
    """The most CPUs, 1 at most, that each of ``workers`` can have, each on one node.

    Args:
        rooms: CPUs that each node has left.
    """
    # Hundredths, rounded down: Ray counts in ten-thousandths, and a hair too much never fits.
    whole = [int(room * 100 + 1e-6) for room in rooms if room > 0]
    fitting = (each for each in range(100, 0, -1) if sum(room // each for room in whole) >= workers)
    return next(fitting, 0) / 100


def use_cores(local_ranks: int) -> None:
    """Share the machine's cores among its ranks; Ray would give each as many threads as it reserved CPUs.

    ``TUBELET_RANK_CORES`` (Linux's numbers, such as ``0,1``) names cores for the ranks of a machine instead:
    what is kept from these then does not take turns with the ranks.
    """
    named = os.environ.get("TUBELET_RANK_CORES")
    if named:
        cores = {int(core) for core in named.split(",")}
        os.sched_setaffinity(0, cores)  # this thread, and those it starts
        torch.set_num_threads(max(1, len(cores) // local_ranks))
    elif not torch.cuda.is_available():
        torch.set_num_threads(max(1, usable_cores() // local_ranks))

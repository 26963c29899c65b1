"""Ranks that become more and fewer with the nodes of the cluster, within ``workers=a..b``.

Ray Train starts the ranks anew when it finds that there could be more; two things it leaves to be done:

- Ranks without GPUs reserve next to nothing, so all would start on the first node, and nodes that come later
  would change nothing. They are as many as there are nodes.
- What was done since the last checkpoint would be done again: the ranks are asked to save first.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from tubelet.cluster import working_nodes

# How often Ray Train looks whether there could be more ranks; each new start costs tens of seconds.
LOOK_EVERY_S = 30.0
# Ranks that have not saved by then are started anew without.
_SAVE_S = 300.0


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]  # ray has no type information
    """A trainer with :class:`GrowingRanks` where the number of ranks is a range.

    Args:
        queue: of the ranks' events.
        rank_per_node: no more ranks than nodes, but for the fewest.
        options: those of ``TorchTrainer``.
    """

    def __init__(self, *args: Any, queue: Any, rank_per_node: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._queue, self._rank_per_node = queue, rank_per_node

    def _initialize_and_run_controller(self, **options: Any) -> Result:
        if self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = GrowingRanks(self.scaling_config, self._queue, self._rank_per_node)
        return super()._initialize_and_run_controller(**options)


class GrowingRanks(ElasticScalingPolicy):  # type: ignore[misc]
    """How many ranks there should be; lives in Ray Train's controller.

    Args:
        queue: by which the ranks are asked to save.
        rank_per_node: see :class:`ElasticTrainer`.
    """

    def __init__(self, scaling_config: ScalingConfig, queue: Any, rank_per_node: bool) -> None:
        super().__init__(scaling_config)
        self._queue, self._rank_per_node = queue, rank_per_node
        self._due: tuple[ResizeDecision, float] | None = None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = int(super()._count_possible_workers(reserved_resources))
        if not self._rank_per_node:
            return possible
        return min(possible, max(int(self.scaling_config.min_workers), working_nodes()))

    def _get_resize_decision(self, num_workers: int) -> ResizeDecision:
        # The decoders of the ranks before may still hold all CPUs of a node: it is waited for. Ranks that are
        # only spread where there is room would all start on the node that joined.
        if self._rank_per_node:
            room = num_workers <= working_nodes()
            self.scaling_config.placement_strategy = "STRICT_SPREAD" if room else "SPREAD"
        return super()._get_resize_decision(num_workers)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """At the start, and after a failure."""
        self._due = None
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Change the number of ranks once these have saved."""
        if self._due is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision):
                ray.get(self._queue.request_save.remote())
                self._due = decision, time.monotonic()
                return NoopDecision()
            return decision
        decision, asked_s = self._due
        if ray.get(self._queue.is_saving.remote()) and time.monotonic() - asked_s < _SAVE_S:
            return NoopDecision()
        self._due = None
        return decision

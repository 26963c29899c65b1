"""What a step leaves to be summed over the ranks, and to be read one step later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Totals:
    """What the ranks sum up each step; the order of the fields is the order on the wire."""

    loss: float = 0.0
    weight: float = 0.0
    correct: float = 0.0
    failed: float = 0.0
    wait_s: float = 0.0
    decode_s: float = 0.0
    stop: float = 0.0
    look_for_preemption: float = 0.0
    writes_no_more: float = 0.0
    save: float = 0.0

    def reduced(self, sums: Tensor) -> Tensor:
        """Global sums, float64 on the device; ``sums`` are this rank's first three fields."""
        rest = torch.tensor(list(vars(self).values())[3:], dtype=torch.float64)
        values = torch.cat([sums.double(), rest.to(sums.device, non_blocking=True)])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
        return values


@dataclass
class Pending:
    """A step that was launched. Its totals are read one step later: a GPU never waits for the host."""

    step: int
    totals: Tensor
    norm: Tensor
    lr: float
    seconds: float
    learned: bool  # whether any clip of the global batch had weight

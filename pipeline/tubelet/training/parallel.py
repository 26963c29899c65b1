"""Data parallelism by one key: replicas (DDP) or shards (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tubelet.training.recipe import Recipe
from tubelet.vivit import ViViT


class Parallel:
    """``module`` is what the forward pass calls; gradients end up in ``model`` itself.

    They are averaged over the ranks, in an order that does not depend on how many steps were done before.
    """

    def __init__(self, model: ViViT, recipe: Recipe, device: torch.device) -> None:
        self.sharded = False
        self.module: nn.Module = model
        if recipe.compile:
            model.compile()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        if recipe.strategy == "fsdp2":
            _shard(model)
            self.sharded = True
            return
        # DDP regroups its buckets after the first step, so a resumed run would sum gradients in another order
        # than the run that went on: with three ranks or more, weights then differ in their last bits. Looking
        # for unused parameters switches the regrouping off.
        ids = [device.index] if device.type == "cuda" else None
        self.module = DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)

    @contextmanager
    def synchronised(self, on: bool) -> Iterator[None]:
        """Whether the backward passes inside average gradients over the ranks, or only add them up."""
        if self.sharded:
            self.module.set_requires_gradient_sync(on)  # type: ignore[operator]  # an FSDPModule
            yield
        elif on or not isinstance(self.module, DistributedDataParallel):
            yield
        else:
            with self.module.no_sync():
                yield

    def reshard(self) -> None:
        """Give up what a forward pass without a backward gathered; else the next step computes with it."""
        if not self.sharded:
            return
        from torch.distributed.fsdp import FSDPModule

        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _shard(model: ViViT) -> None:
    from torch.distributed.fsdp import fully_shard  # takes seconds to import, and DDP needs none of it

    for encoder in (model.encoder, model.temporal_encoder):
        for block in encoder.blocks if encoder is not None else ():
            fully_shard(block)
    fully_shard(model)


def full_tensor(value: Tensor) -> Tensor:
    """A copy on the CPU of all of ``value``; collective where it is sharded."""
    whole = value.detach()
    if hasattr(whole, "full_tensor"):
        whole = whole.full_tensor()
    return whole.cpu().clone().contiguous()


def like(whole: Tensor, parameter: Tensor) -> Tensor:
    """``whole`` on the device of ``parameter``, and sharded as it is."""
    moved = whole.to(parameter.device)
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements)
    return moved

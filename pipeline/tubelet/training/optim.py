"""Optimiser, parameter groups, gradient clipping, averaged weights, frozen backbones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.config import UserError
from tubelet.training.recipe import OptimiserSettings
from tubelet.vivit import ViViT

HEAD_PARTS = ("head", "pre_logits", "frame_pool")
_BEFORE_BLOCKS = ("cls", "position", "registers", "embed_norm")
_BLOCK = re.compile(r"(temporal_encoder|encoder)\.(?:blocks\.(\d+)|(\w+))")


def make_optimiser(model: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """The optimiser over the parameters that learn. Each group's ``lr_scale`` is for :func:`set_lr`."""
    groups = parameter_groups(model, settings)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)


def parameter_groups(model: nn.Module, settings: OptimiserSettings) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, in a fixed order.

    Biases, norms, positions and class tokens are not decayed. With ``layer_decay`` d, a parameter ``k``
    levels below the head learns at ``lr * d^k`` (levels: embedding, each block, head; Model 2's temporal
    blocks come after its spatial ones).
    """
    named = [(clean_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    levels = {name: level_of(name, model) for name, _ in named}
    top = max(levels.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        decayed = parameter.ndim > 1 and not name.endswith((".cls", ".position", ".registers", ".probe"))
        group = groups.setdefault(
            (levels[name], decayed),
            {
                "params": [],
                "weight_decay": settings.weight_decay if decayed else 0.0,
                "lr_scale": settings.layer_decay ** (top - levels[name]),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def level_of(name: str, model: nn.Module) -> int:
    """How far up a parameter stands: 0 the embedding, then one level per block, the head on top."""
    blocks = _block_counts(name for name, _ in model.named_parameters())
    spatial, temporal = blocks.get("encoder", 0), blocks.get("temporal_encoder", 0)
    if name.startswith(HEAD_PARTS):
        return spatial + temporal + 1
    match = _BLOCK.match(name)
    if not match:
        return 0
    encoder, index, other = match.groups()
    first = 1 if encoder == "encoder" else spatial + 1
    if index is not None:
        return first + int(index)
    # What comes before the first block is a level below it; the final norm is on that of the last block.
    return first - 1 if other in _BEFORE_BLOCKS else first + blocks[encoder] - 1


def _block_counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        match = _BLOCK.match(clean_name(name))
        if match and match[2] is not None:
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def clean_name(name: str) -> str:
    """A parameter's name without what DDP, ``torch.compile`` and checkpointing put into it."""
    return re.sub(r"(^|\.)(module|_orig_mod|_checkpoint_wrapped_module)(?=\.)", "", name).lstrip(".")


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, scaled by its ``lr_scale``."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale gradients by ``max_norm / norm`` where their global norm reaches ``max_norm``; returns the norm.

    Exactly so, without the epsilon of ``clip_grad_norm_``, as the paper's code does it. Call it on the summed
    gradients of all ranks (after DDP's all-reduce; FSDP's sharded gradients are summed here).
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(grads))))
    if hasattr(norm, "full_tensor"):  # FSDP2: each rank holds its shards
        norm = norm.full_tensor()
    if max_norm is not None:
        # Multiplied in any case: asking whether to would make the host wait for the device.
        scale = torch.where(norm >= max_norm, max_norm / norm, torch.ones_like(norm))
        torch._foreach_mul_(grads, scale)
    return norm


def frozen_names(model: ViViT, freeze: str) -> set[str]:
    """Parameters that ``freeze`` of a recipe keeps as they are.

    Raises:
        UserError: it means nothing for this model.
    """
    names = [clean_name(name) for name, _ in model.named_parameters()]
    if freeze == "none":
        return set()
    if freeze == "backbone":
        return {name for name in names if not name.startswith(HEAD_PARTS)}
    if freeze == "spatial":
        if model.temporal_encoder is None:
            raise UserError(
                f"freeze=spatial: only Model 2 has a temporal transformer to train, not "
                f"{model.config.variant}: set model=…-model2, or freeze=backbone"
            )
        return {name for name in names if name.startswith(("embedding.", "encoder."))}
    layers, count = _block_counts(names), int(freeze.removeprefix("last:"))
    total = sum(layers.values())
    if count > total:
        raise UserError(f"freeze={freeze}: the model has {total} layers")
    return {name for name in names if _learning_level(name, model, layers) <= total - count}


def _learning_level(name: str, model: ViViT, layers: Mapping[str, int]) -> int:
    """:func:`level_of`, but what begins Model 2's temporal transformer learns with its first layer."""
    begins = re.match(rf"temporal_encoder\.({'|'.join(_BEFORE_BLOCKS)})", name)
    return layers["encoder"] + 1 if begins else level_of(name, model)


def freeze_parameters(model: ViViT, freeze: str) -> None:
    """Give frozen parameters no gradients, and put what holds nothing else into evaluation mode."""
    frozen = frozen_names(model, freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(clean_name(name) not in frozen)
    _train_what_learns(model, learns=True)


def _train_what_learns(module: nn.Module, *, learns: bool) -> None:
    """A module is in training mode where any of its parameters learns; one without any is as its parent."""
    own = list(module.parameters())
    module.training = any(parameter.requires_grad for parameter in own) if own else learns
    for child in module.children():
        _train_what_learns(child, learns=module.training)


class Ema:
    """Averaged weights: ``a = d a + (1 - d) p`` after each update.

    The decay warms up as ``min(d, (1 + n) / (10 + n))`` with ``n`` updates done, so that a short run is not
    an average of its first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {clean_name(name): p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an update."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        named = {clean_name(name): p.detach() for name, p in model.named_parameters()}
        averages = [self.weights[name] for name in named]
        torch._foreach_lerp_(averages, list(named.values()), 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by name, and ``updates``: what a resumed run needs."""
        return {**self.weights, "updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.updates = int(state["updates"])
        for name, average in self.weights.items():
            average.copy_(state[name])

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averages into ``model``."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[clean_name(name)])

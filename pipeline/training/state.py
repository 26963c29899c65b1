"""What a training step changes: weights, optimiser, averages, loss scale; and what a checkpoint keeps."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models import ModelBundle
from pipeline.training.objective import Objective, Targets
from pipeline.vivit import ViViT, load_model

if TYPE_CHECKING:
    from pipeline.training.loop import TrainJob
    from pipeline.training.recipe import Recipe

MODEL_FILE, STATE_FILE = "model.safetensors", "state.safetensors"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainState:
    """The model of one rank and everything that moves with it. Make it with :meth:`start`."""

    def __init__(self, job: TrainJob, model: ViViT, device: torch.device, step: int) -> None:
        self.job, self.recipe, self.device, self.step = job, job.recipe, device, step
        self.model = model.to(device).train()
        self.model.activation_checkpointing(self.recipe.activation_checkpointing)
        self._freeze()
        self.optimiser = _optimiser(self.model, self.recipe)
        self.base_lrs = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.ema = copy.deepcopy(self.model) if self.recipe.regularisation.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.recipe.precision == "fp16")
        self.objective = Objective(self.recipe)
        self.lr = 0.0
        self.parallel = self._parallel()

    @classmethod
    def start(cls, job: TrainJob, device: torch.device) -> TrainState:
        """At the newest complete checkpoint, or at step 0 with the initial weights."""
        store = job.feed.checkpoints
        step = store.newest()
        with tempfile.TemporaryDirectory(prefix="tubelet-load-") as folder:
            if step is None:
                return cls(job, load_model(job.initial)[0], device, 0)
            files = store.fetch(step, Path(folder))
            state = cls(job, load_model(files / MODEL_FILE)[0], device, step)
            state._restore(files / STATE_FILE)
            return state

    # ---- a step

    def schedule(self, step: int) -> None:
        """Set the learning rate of ``step``, counted from 0."""
        factor = _lr_factor(self.recipe, step, self.job.warmup_steps, self.job.total_steps)
        self.lr = self.recipe.optimiser.lr * factor
        for group, base in zip(self.optimiser.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def loss(self, tubelets: Tensor, targets: Targets, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of losses and of right answers; see :class:`Objective`."""
        with self._autocast():
            return self.objective(self.parallel, tubelets, targets, weight)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def update(self, factor: Tensor) -> float:
        """Multiply the gradients by ``factor``, clip them, update; returns their norm before clipping.

        ``factor`` is batch / global sum of weights: 1 but for failed clips. Where all failed there is no
        update.
        """
        self.scaler.unscale_(self.optimiser)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.device.type != "cpu" or float(factor) != 1.0:
            torch._foreach_mul_(grads, factor.to(torch.float32))
        limit = self.recipe.optimiser.clip_norm
        norm = nn.utils.get_total_norm(grads)
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
        if torch.isfinite(factor).item():
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self._average()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return float(norm)

    def no_sync(self) -> AbstractContextManager[None]:
        """Leave the gradients of this micro-batch on this rank."""
        if isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    # ---- checkpoints

    def snapshot(self) -> Callable[[Path], None]:
        """What :class:`CheckpointWriter` needs: a function that writes this state into an empty folder."""
        bundle = ModelBundle(
            self.ema or self.model,
            self.job.labels,
            self.job.spec,
            self.recipe.multilabel,
            {**self.job.metadata, "step": self.step},
        )
        state = self._state_tensors()

        def write(folder: Path) -> None:
            bundle.save(folder)
            save_file(state, folder / STATE_FILE, metadata={"step": str(self.step)})

        return write

    def _state_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{key}.{name}"] = value.detach().cpu().contiguous()
        if self.ema is not None:
            for name, value in self.model.state_dict().items():
                tensors[f"raw.{name}"] = value.detach().cpu().contiguous()
        if self.scaler.is_enabled():
            tensors["loss_scale"] = torch.tensor(self.scaler.get_scale(), dtype=torch.float64)
        return tensors

    def _restore(self, path: Path) -> None:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, parameter in self.model.named_parameters():
            for full, value in tensors.items():
                part, _, rest = full.partition(".")
                key, _, owner = rest.partition(".")
                if part == "optimiser" and owner == name:
                    place = parameter.device if value.dim() else value.device
                    self.optimiser.state[parameter][key] = value.to(place)
        raw = {name[4:]: value for name, value in tensors.items() if name.startswith("raw.")}
        if self.ema is not None:
            self.ema.load_state_dict(self.model.state_dict())
            self.model.load_state_dict(raw)

    # ---- making

    def _freeze(self) -> None:
        if self.recipe.freeze == "backbone":
            self.model.requires_grad_(False)
            self.model.head.requires_grad_(True)

    def _parallel(self) -> nn.Module:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.model
        # DDP regroups its buckets after the first step, so a resumed run would sum gradients in another
        # order than the run that went on: weights then differ in the last bits with three ranks or more.
        # Looking for unused parameters switches the regrouping off.
        return DistributedDataParallel(self.model, find_unused_parameters=True)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _DTYPES.get(self.recipe.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.recipe.regularisation.ema
        if self.ema is not None and decay is not None:
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    settings = recipe.optimiser
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, settings.lr, settings.momentum, nesterov=settings.nesterov)
    return torch.optim.AdamW(
        parameters, settings.lr, settings.betas, settings.eps, weight_decay=settings.weight_decay
    )


def _lr_factor(recipe: Recipe, step: int, warmup: int, total: int) -> float:
    rise = min(1.0, step / warmup) if warmup else 1.0
    if recipe.schedule.shape == "constant":
        return rise
    share = max(0, step - warmup) / max(1, total - warmup)
    final = recipe.schedule.final_ratio
    return rise * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))

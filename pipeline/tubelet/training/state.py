"""What a training step changes: weights, optimiser, averages, loss scale; and what a checkpoint keeps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tubelet._version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version
from tubelet.inference.bundle import ModelBundle
from tubelet.training.job import TrainJob
from tubelet.training.optim import Ema, clip_gradients, freeze_parameters, make_optimiser, set_lr
from tubelet.training.parallel import Parallel, full_tensor, like
from tubelet.training.schedule import Schedule
from tubelet.vivit import ViViT, load_model

# The files of a checkpoint; their names are a format that earlier versions wrote.
MODEL_FILE, STATE_FILE, RECORDS_FILE = "model.safetensors", "state.safetensors", "told.json"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainState:
    """The model of one rank and everything that moves with it. Make it with :meth:`start`."""

    def __init__(self, job: TrainJob, model: ViViT, device: torch.device, step: int) -> None:
        self.job, self.recipe, self.device, self.step = job, job.recipe, device, step
        # Of the checkpoint that this state was restored from.
        self.notes: dict[str, Any] = {}
        self.unflushed: list[dict[str, Any]] = []
        self.model = model.to(device)
        self.model.activation_checkpointing(self.recipe.activation_checkpointing)
        self._set_modes()
        self.parallel = Parallel(self.model, self.recipe, device)
        self.optimiser = make_optimiser(self.model, self.recipe.optimiser)
        decay = self.recipe.regularisation.ema
        self.ema = Ema(self.model, decay) if decay else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.recipe.precision == "fp16")
        self.lr_of = Schedule.of(self.recipe, job.train_rows)

    @classmethod
    def start(cls, job: TrainJob, device: torch.device) -> TrainState:
        """At the newest complete checkpoint, or at step 0 with the initial weights."""
        store = job.feed.checkpoints
        with tempfile.TemporaryDirectory(prefix="tubelet-load-") as folder:
            newest = store.fetch_newest(Path(folder))
            if newest is None:
                return cls(job, ModelBundle.load(job.initial, options=store.options).model, device, 0)
            step, files = newest
            saved = _read(files / STATE_FILE)
            model, metadata = load_model(files / MODEL_FILE)
            averages = dict(model.state_dict())
            model.load_state_dict(_under("raw", saved) or averages, assign=True)
            state = cls(job, model, device, step)
            state._restore(saved, averages)
            state.notes = metadata
            state.unflushed = json.loads((files / RECORDS_FILE).read_text("utf-8"))
            return state

    # ---- a step

    def set_lr(self, step: int) -> float:
        """Set the learning rate of ``step``, counted from 0, and return it."""
        lr = self.lr_of(step)
        set_lr(self.optimiser, lr)
        return lr

    def autocast(self) -> AbstractContextManager[object]:
        """Lower precision for the forward pass, where the recipe asks for it."""
        dtype = _DTYPES.get(self.recipe.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """For forward passes only; inside, the model has the averaged weights, where the recipe averages."""
        if not self.ema:
            yield
            self.parallel.reshard()
            return
        own = [p.detach().clone() for p in self.model.parameters()]
        self.ema.copy_to(self.model)
        yield
        self.parallel.reshard()
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), own, strict=True):
                parameter.copy_(value)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def update(self, factor: Tensor) -> Tensor:
        """Multiply the gradients by ``factor``, clip them, update; returns their norm before clipping."""
        self.scaler.unscale_(self.optimiser)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_(grads, factor.to(torch.float32))
        norm = clip_gradients(self.model.parameters(), self.recipe.optimiser.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model)
        self.step += 1
        return norm

    def skip(self) -> Tensor:
        """Leave out the update of a global batch without weight; returns a norm of 0."""
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return torch.zeros(())

    # ---- checkpoints

    def snapshot(self, notes: dict[str, Any], unflushed: list[dict[str, Any]]) -> Callable[[Path], None]:
        """A function that writes this state into an empty folder. All ranks call this; rank 0 writes.

        Args:
            notes: plain values to keep with the model.
            unflushed: records sent since the last checkpoint.
        """
        weights = {name: full_tensor(value) for name, value in self.model.state_dict().items()}
        state = self._state_tensors(weights)
        model = self._unsharded(weights)
        metadata = {**self.job.metadata, **notes, "step": self.step}
        bundle = ModelBundle(model, self.job.labels, self.job.spec, self.recipe.multilabel, metadata)

        head = {"step": str(self.step), SCHEMA_KEY: str(SCHEMA_VERSION)}

        def write(folder: Path) -> None:
            bundle.save(folder)
            save_file(state, folder / STATE_FILE, metadata=head)
            (folder / RECORDS_FILE).write_text(json.dumps(unflushed), "utf-8")

        return write

    def _unsharded(self, weights: dict[str, Tensor]) -> ViViT:
        """A copy of the model as users should have it: averaged where the recipe averages."""
        with torch.device("meta"):
            model = ViViT(self.model.config)
        model.load_state_dict(weights, assign=True)
        if self.ema:
            averages = {name: full_tensor(value) for name, value in self.ema.weights.items()}
            model.load_state_dict(averages, assign=True)
        return model

    def _state_tensors(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{key}.{name}"] = full_tensor(value)
        if self.ema:
            tensors |= {f"raw.{name}": value for name, value in weights.items()}
            tensors["ema_updates"] = torch.tensor(self.ema.updates)
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            tensors["scaler.scale"] = torch.tensor(state["scale"], dtype=torch.float64)
            tensors["scaler.tracker"] = torch.tensor(state["_growth_tracker"])
        # save_file refuses tensors that share memory, and Adam's step counters may.
        return {name: value.clone() for name, value in tensors.items()}

    def _restore(self, saved: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
        if self.ema:
            own = {name: like(averages[name], value) for name, value in self.ema.weights.items()}
            self.ema.load_state_dict({**own, "updates": saved["ema_updates"]})
        moments = _under("optimiser", saved)
        for name, parameter in self.model.named_parameters():
            for full, value in moments.items():
                key, _, owner = full.partition(".")
                if owner == name:
                    self.optimiser.state[parameter][key] = like(value, parameter) if value.dim() else value
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            state["scale"] = float(saved["scaler.scale"])
            state["_growth_tracker"] = int(saved["scaler.tracker"])
            self.scaler.load_state_dict(state)

    def _set_modes(self) -> None:
        self.model.train()
        if self.recipe.freeze != "none":
            freeze_parameters(self.model, self.recipe.freeze)


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt", device="cpu") as file:
        check_schema_version(file.metadata(), str(path))
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}

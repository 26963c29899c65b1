"""The one forward pass: uint8 tubelets of many videos to logits, averaged over the views of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tubelet.vivit import ViViT, ViViTConfig, fold_normalisation

Floats = npt.NDArray[np.float32]
T = TypeVar("T")

_CPU_ACTIVATION_BYTES = 256 << 20


@dataclass(frozen=True)
class Outcome:
    """What a model says of n videos, means over their views, float32.

    Attributes:
        logits, probabilities: ``(n, classes)`` by head.
        features: pooled, ``(n, d)``.
    """

    logits: dict[str, Floats]
    probabilities: dict[str, Floats]
    features: Floats

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Bool ``(n,)``: no logit is NaN or infinite."""
        joined = np.concatenate(list(self.logits.values()), 1)
        return np.asarray(np.isfinite(joined).all(1))

    def take(self, rows: npt.NDArray[np.bool_]) -> Outcome:
        """The same of some of the videos."""
        logits, probabilities = (
            {head: values[rows] for head, values in by_head.items()}
            for by_head in (self.logits, self.probabilities)
        )
        return Outcome(logits, probabilities, self.features[rows])


class Batches:
    """Clips of uint8 tubelets through a function of a model, on one device, in batches that fit its memory.

    Args:
        most_clips: clips in one pass; fewer where the memory asks for it.
    """

    def __init__(self, config: ViViTConfig, device: torch.device, most_clips: int | None = None) -> None:
        self._device = device
        self._clips = min(clips_at_once(config, _free_bytes(device)), most_clips or 256)

    def __call__(
        self,
        call: Callable[[Tensor], T],
        tubelets: npt.NDArray[np.uint8],
        rows: npt.NDArray[np.int64],
    ) -> Iterator[T]:
        """What ``call`` makes of each batch ``(b, tokens, bytes)``.

        Args:
            tubelets: uint8 ``(n, V, tokens, bytes)``.
            rows: which of the n are looked at; the views of one come after each other.
        """
        views = tubelets.shape[1]
        flat = tubelets.reshape(-1, *tubelets.shape[2:])
        index = (rows[:, None] * views + np.arange(views)).reshape(-1)
        start = 0
        while start < len(index):
            part = index[start : start + self._clips]
            try:
                found = call(self._clip(flat, part))
            except torch.OutOfMemoryError:
                if self._clips == 1:
                    raise
                self._clips = max(1, self._clips // 2)  # another process took memory of the same GPU
                continue
            start += len(part)
            yield found

    def _clip(self, flat: npt.NDArray[np.uint8], index: npt.NDArray[np.int64]) -> Tensor:
        one_run = len(index) and index[-1] - index[0] + 1 == len(index)
        clips = flat[index[0] : index[-1] + 1] if one_run else flat[index]
        with warnings.catch_warnings():
            # Blocks of the object store are read-only, and torch warns of that; they are only read here.
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.from_numpy(clips)
        return tensor.to(self._device, non_blocking=True)


class Forward:
    """One model on one device: bf16 on a GPU, normalisation folded into the embedding, batches that fit.

    Args:
        model: is changed in place.
        multilabel: probabilities by sigmoid, each for itself, instead of softmax.
        most_clips: clips in one pass; fewer where the memory asks for it.
        compiled: compile it first.
    """

    def __init__(
        self,
        model: ViViT,
        device: torch.device,
        *,
        multilabel: bool = False,
        most_clips: int | None = None,
        compiled: bool = False,
    ) -> None:
        self._act = torch.sigmoid if multilabel else lambda x: torch.softmax(x, -1)
        self._config = model.config
        self._batches = Batches(model.config, device, most_clips)
        model = fold_normalisation(model.eval().requires_grad_(False))
        if device.type == "cuda":
            model = model.to(device, torch.bfloat16)
        self._model: Callable[..., Any] = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def __call__(self, tubelets: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Outcome:
        """``tubelets`` uint8 ``(n, V, tokens, bytes)``; only ``rows`` of them are looked at."""
        views = tubelets.shape[1]
        logits: dict[str, list[Tensor]] = {head: [] for head in self._config.label_heads}
        features: list[Tensor] = []
        for found, pooled in self._batches(partial(self._model, features=True), tubelets, rows):
            by_head = found if isinstance(found, dict) else {next(iter(logits)): found}
            for head, values in by_head.items():
                logits[head].append(values.float())
            features.append(pooled.float())
        return self._outcome(logits, features, views)

    def _outcome(self, logits: dict[str, list[Tensor]], features: list[Tensor], views: int) -> Outcome:
        def mean(parts: list[Tensor], width: int) -> Tensor:
            joined = torch.cat(parts) if parts else torch.zeros(0, width)
            return mean_over_views(joined.reshape(-1, views, joined.shape[-1]))

        raw = {head: mean(logits[head], classes) for head, classes in self._config.label_heads.items()}
        return Outcome(
            {head: values.cpu().numpy() for head, values in raw.items()},
            {head: self._act(values).cpu().numpy() for head, values in raw.items()},
            mean(features, self._config.pooled_width).cpu().numpy(),
        )


def mean_over_views(values: Tensor) -> Tensor:
    """``(n, V, classes)`` to ``(n, classes)``: of raw logits, not of probabilities, as the authors do."""
    return values.mean(1)


def clips_at_once(config: ViViTConfig, free_bytes: int) -> int:
    """How many clips one forward pass may take, so that its activations fit ``free_bytes``."""
    bytes_per_token = 4 * (config.token_values + 8 * config.dim + 2 * config.mlp)
    return max(1, min(256, free_bytes // (config.tokens * bytes_per_token)))


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_ACTIVATION_BYTES
    return int(torch.cuda.mem_get_info(device)[0] * 0.5)

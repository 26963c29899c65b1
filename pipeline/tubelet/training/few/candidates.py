"""The candidates: what each head is as a ViViT, and how it does on clips that it was not fitted on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.training.few.folds import Folds
from tubelet.training.few.linear import POOLS, TOKENS, linear_out_of_fold, pooled
from tubelet.training.few.probes import ProbeSettings, frames_of, probe_out_of_fold
from tubelet.training.few.task import Floats, Task
from tubelet.vivit import ViViTConfig

Frames = npt.NDArray[np.float32]

# The classifier of a ViViT that pools these tokens of a frame.
CLASSIFIERS = {"class": "token", "patch": "gap", "both": "token_gap"}


@dataclass(frozen=True)
class Candidate:
    """A head, or a model, and its out-of-fold predictions.

    Attributes:
        name: for people.
        family: "linear", "attention", "temporal", "ensemble", "scratch", "finetune", or "frame" (a linear
            head on one frame, which is there to compare with).
        logits: ``(repeats, n, classes)``.
        seconds: what fitting it on all folds took.
        tokens: which tokens of a frame it looks at; ``pool``, ``layers``, ``strength``: of its family.
        members: of an ensemble: their features all lie in its own.
        choosable: whether a model can be made of it.
    """

    name: str
    family: str
    logits: Floats
    seconds: float
    tokens: str = "both"
    pool: str = "mean"
    layers: int = 0
    strength: float | None = None
    members: tuple[Candidate, ...] = ()
    choosable: bool = True
    note: str = ""

    def scores(self, task: Task) -> Floats:
        """Mean over the repeats of each clip's score, ``(n,)``."""
        mean: Floats = np.mean([task.scores(one) for one in self.logits], axis=0)
        return mean

    def loss(self, task: Task) -> float:
        """Mean cross-entropy out of fold."""
        return float(np.mean([task.losses(one).mean() for one in self.logits]))

    def config(self, base: ViViTConfig) -> ViViTConfig:
        """The model that this head completes; ``base``: of variant "average", as the features were made."""
        common: dict[str, Any] = {"classifier": CLASSIFIERS[self.tokens]}
        if base.has_cls:
            common["class_token"] = True
        if self.family in ("temporal", "attention"):
            # A quarter of the usual MLP: half of the time, on clips too few for more.
            common["temporal_mlp"] = base.dim
        if self.family == "temporal":
            return base.replace(**common, variant="model2", temporal_layers=self.layers, temporal_pool="mean")
        return base.replace(**common, temporal_pool="attention" if self.family == "attention" else self.pool)


@dataclass(frozen=True)
class Search:
    """Which heads are tried.

    Attributes:
        strengths: inverse strengths C of the linear heads' regularisation.
        layers: of the temporal transformers.
        probe: how those and the attention pooling are trained.
    """

    strengths: Sequence[float] = (0.001, 0.01, 0.1)
    layers: Sequence[int] = (1, 2, 3, 4)
    probe: ProbeSettings = field(default_factory=ProbeSettings)


def token_sets(base: ViViTConfig) -> tuple[str, ...]:
    """Which tokens of a frame there are to look at: an encoder may have no class token."""
    return TOKENS if base.has_cls else ("patch",)


def linear_candidates(
    frames: Frames, task: Task, folds: Folds, search: Search, base: ViViTConfig
) -> Iterator[Candidate]:
    """Linear heads on every pooling, one candidate for each strength; and those on the middle frame alone."""
    middle = frames[:, frames.shape[1] // 2][:, None]
    kinds = [("frame", middle, tokens, "mean") for tokens in token_sets(base)]
    kinds += [("linear", frames, tokens, pool) for tokens in token_sets(base) for pool in POOLS]
    for family, x, tokens, pool in kinds:
        started_s = time.monotonic()
        logits = linear_out_of_fold(pooled(x, tokens, pool), task, folds, search.strengths)
        seconds = (time.monotonic() - started_s) / len(search.strengths)
        for strength, found in zip(search.strengths, logits, strict=True):
            what = "one frame" if family == "frame" else pool
            name = f"linear, {what}, {tokens}, C={strength:g}"
            yield Candidate(
                name,
                family,
                found,
                seconds,
                tokens,
                pool,
                strength=strength,
                choosable=family == "linear",
                note="" if family == "linear" else "to compare with: no head of several frames",
            )


def probe_candidates(
    frames: Frames, task: Task, folds: Folds, search: Search, base: ViViTConfig
) -> Iterator[Candidate]:
    """Attention pooling, and temporal transformers (Model 2), on the folds of the first repeat.

    A deeper transformer is tried as long as the last layer has helped: each costs more than all linear heads.
    """
    best = 0.0
    kinds: list[tuple[str, str, int]] = [("attention", token_sets(base)[0], 0)]
    kinds += [("temporal", token_sets(base)[0], layers) for layers in search.layers]
    for family, tokens, layers in kinds:
        started_s = time.monotonic()
        name = f"attention pooling, {tokens}" if family == "attention" else f"temporal x{layers}, {tokens}"
        candidate = Candidate(name, family, np.zeros((0, 0, 0)), 0.0, tokens, layers=layers)
        config = candidate.config(base)
        logits = probe_out_of_fold(frames_of(frames, config), task, config, folds.first, search.probe)
        found = Candidate(name, family, logits, time.monotonic() - started_s, tokens, layers=layers)
        yield found
        if family == "temporal":
            score = float(found.scores(task).mean())
            if score <= best:
                return
            best = score


def ensemble_of(first: Candidate, second: Candidate) -> Candidate | None:
    """The mean of two linear heads, where one pooling holds the features of both; else None.

    One ViViT has one pooling, so only such pairs are one model: the mean of their logits is one linear map
    of the pooling that holds both.
    """
    pools = {first.pool, second.pool} - {"mean"}
    if {first.family, second.family} != {"linear"} or len(pools) > 1:
        return None
    tokens = first.tokens if first.tokens == second.tokens else "both"
    logits = (first.logits + second.logits) / 2
    return Candidate(
        f"mean of ({first.name}) and ({second.name})",
        "ensemble",
        logits,
        0.0,
        tokens,
        pools.pop() if pools else "mean",
        members=(first, second),
    )

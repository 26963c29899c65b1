"""From a chosen head to the model: fitted on all clips, in one ViViT with the frames' encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tubelet.training.few.candidates import Candidate, Frames
from tubelet.training.few.linear import LinearHead, fit_linear, pooled
from tubelet.training.few.probes import ProbeSettings, fit_probe, frames_of
from tubelet.training.few.task import Floats, Task
from tubelet.vivit import ViViT


@dataclass(frozen=True)
class Fitted:
    """A whole model, and what it says of features of ``base`` ``(n, frames, 2, dim)``: logits by clip.

    The model's own frames may be others: what standardises them lies in its encoder's last norm.
    """

    model: ViViT
    logits: Callable[[Frames], Floats]


def fit_chosen(candidate: Candidate, frames: Frames, task: Task, base: ViViT, probe: ProbeSettings) -> Fitted:
    """The candidate fitted on all of ``task``, as a whole model.

    Args:
        frames: ``(n, frames, 2, dim)``, as ``base`` makes them.
        base: variant "average", with the encoder of the frames.
    """
    model = ViViT(candidate.config(base.config))
    _copy_encoder(model, base)
    if candidate.family in ("attention", "temporal"):
        config = model.config
        fitted = fit_probe(frames_of(frames, config), task, config, probe)
        fitted.fill(model)
        return Fitted(model.eval(), lambda x: fitted(frames_of(x, config)))
    head = linear_head(candidate, frames, task)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight))
        model.head.bias.copy_(torch.from_numpy(head.bias))
    return Fitted(model.eval(), lambda x: head(pooled(x, candidate.tokens, candidate.pool)))


def linear_head(candidate: Candidate, frames: Frames, task: Task) -> LinearHead:
    """The one linear map of a linear candidate, or of an ensemble of two, on the candidate's own pooling."""
    if not candidate.members:
        assert candidate.strength is not None
        features = pooled(frames, candidate.tokens, candidate.pool)
        return fit_linear(features, task, [candidate.strength])[0]
    heads = [linear_head(member, frames, task) for member in candidate.members]
    wide = [
        _widen(head.weight, member, candidate, frames.shape[3])
        for head, member in zip(heads, candidate.members, strict=True)
    ]
    return LinearHead(np.mean(wide, axis=0), np.mean([head.bias for head in heads], axis=0))


def _widen(weight: Floats, member: Candidate, whole: Candidate, dim: int) -> Floats:
    """``(classes, member's features)`` to ``(classes, the ensemble's)``, zero where the member does not look.

    Features are ordered by statistic (mean, then the second), then by token (class, then patches).
    """
    stats = 1 if whole.pool == "mean" else 2
    tokens = {"class": [0], "patch": [1], "both": [0, 1]}
    own, all_tokens = tokens[member.tokens], tokens[whole.tokens]
    blocks = weight.reshape(len(weight), -1, len(own), dim)
    found = np.zeros((len(weight), stats, len(all_tokens), dim))
    for place, token in enumerate(own):
        found[:, : blocks.shape[1], all_tokens.index(token)] = blocks[:, :, place]
    return found.reshape(len(weight), -1)


def _copy_encoder(model: ViViT, base: ViViT) -> None:
    """Embedding and encoder of ``base``; the rest of ``model`` is for the head."""
    weights = {
        name: value
        for name, value in base.state_dict().items()
        if name.startswith(("embedding.", "encoder."))
    }
    model.load_state_dict(weights, strict=False)

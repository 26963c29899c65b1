"""Logistic regression on pooled features, as the linear layer of a ViViT's head.

A linear head is fitted on standardised features by scikit-learn, in double precision; scaler and weights
fold into one weight and bias on the features as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from tubelet.training.few.folds import Folds
from tubelet.training.few.task import Floats, Ints, Task

# Logit of a class that no clip to fit on has.
NEVER = -30.0
TOKENS = ("class", "patch", "both")
POOLS = ("mean", "mean_std", "mean_diff")


@dataclass(frozen=True)
class LinearHead:
    """``logits = features @ weight.T + bias``; weight ``(classes, width)``, bias ``(classes,)``, float64."""

    weight: Floats
    bias: Floats

    def __call__(self, features: npt.NDArray[Any]) -> Floats:
        """``(n, width)`` to ``(n, classes)``."""
        found: Floats = features.astype(np.float64) @ self.weight.T + self.bias
        return found


def pooled(frames: npt.NDArray[np.float32], tokens: str, pool: str) -> Floats:
    """Features of frames to features of clips, as a ViViT of variant "average" pools them.

    Args:
        frames: ``(n, frames, 2, dim)``: class token, and mean of the patch tokens.
        tokens: "class", "patch" or "both".
        pool: "mean"; "mean_std"; "mean_diff" (mean absolute difference of neighbouring frames).

    Returns:
        ``(n, width)``.
    """
    chosen = frames[:, :, {"class": slice(0, 1), "patch": slice(1, 2), "both": slice(0, 2)}[tokens]]
    x = chosen.reshape(*chosen.shape[:2], -1).astype(np.float64)
    mean = x.mean(1)
    if pool == "mean":
        return np.asarray(mean)
    if pool == "mean_std":
        return np.concatenate((mean, x.std(1)), axis=1)
    steps = np.abs(np.diff(x, axis=1)).sum(1) / max(x.shape[1] - 1, 1)
    return np.concatenate((mean, steps), axis=1)


def fit_linear(features: Floats, task: Task, strengths: Sequence[float]) -> list[LinearHead]:
    """One head for each inverse strength ``C`` of regularisation.

    The features are rotated onto the rows' own span first, which changes nothing of the solution (it lies in
    that span) and makes the cost follow the number of clips instead of the width.
    """
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-12] = 1.0
    standard = (features - mean) / scale
    rotation = _rotation(standard)
    reduced = standard @ rotation
    heads = []
    for weight, bias in _fits(reduced, task, strengths):
        folded = (weight @ rotation.T) / scale
        heads.append(LinearHead(folded, bias - folded @ mean))
    return heads


def linear_out_of_fold(
    features: Floats, task: Task, folds: Folds, strengths: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Logits of every clip by heads that never saw its fold, ``(strengths, repeats, n, classes)``."""
    found = np.zeros((len(strengths), len(folds.repeats), len(task), task.width))
    # Such small products gain nothing from threads, and wait for each other where the cores are busy.
    with threadpool_limits(1):
        for repeat, pairs in enumerate(folds.repeats):
            for fit, scored in pairs:
                for number, head in enumerate(fit_linear(features[fit], task.take(fit), strengths)):
                    found[number, repeat, scored] = head(features[scored])
    return found


def _rotation(standard: Floats) -> Floats:
    """Orthonormal ``(width, rank)`` basis of the rows' span; the identity where that saves nothing."""
    n, width = standard.shape
    if width <= n:
        return np.eye(width)
    values, vectors = np.linalg.eigh(standard @ standard.T)
    kept = values > values[-1] * 1e-10
    basis: Floats = standard.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    return basis


def _fits(reduced: Floats, task: Task, strengths: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Weight ``(classes, rank)`` and bias for each strength; every problem starts from the one before."""
    problems = _problems(task)
    models = [LogisticRegression(solver="newton-cg", tol=1e-5, warm_start=True) for _ in problems]
    found = []
    for strength in strengths:
        weight, bias = np.zeros((task.width, reduced.shape[1])), np.full(task.width, NEVER)
        for model, (labels, columns) in zip(models, problems, strict=True):
            _fit_one(model.set_params(C=strength), reduced, labels, columns, (weight, bias))
        found.append((weight, bias))
    return found


def _problems(task: Task) -> list[tuple[Ints, Ints]]:
    """Labels ``(n,)`` and the logits that they decide: one per head, or per class of several labels."""
    if not task.multilabel:
        return [
            (task.targets[head], np.arange(where.start, where.stop)) for head, where in task.columns().items()
        ]
    return [
        (task.targets[head][:, i].astype(np.int64), np.array([where.start + i]))
        for head, where in task.columns().items()
        for i in range(where.stop - where.start)
    ]


def _fit_one(
    model: LogisticRegression, reduced: Floats, labels: Ints, columns: Ints, out: tuple[Floats, Floats]
) -> None:
    weight, bias = out
    classes = np.unique(labels)
    if len(classes) == 1:  # nothing to tell apart among these rows
        if len(columns) > 1 or classes[0]:
            bias[columns[classes] if len(columns) > 1 else columns] = -NEVER
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close enough: cross-validation judges the head
        model.fit(reduced, labels)
    if len(columns) == 1:
        weight[columns], bias[columns] = model.coef_, model.intercept_
    elif len(classes) == 2:
        # One row for two classes: half of it against each.
        weight[columns[classes]] = np.concatenate((-model.coef_, model.coef_)) / 2
        bias[columns[classes]] = np.concatenate((-model.intercept_, model.intercept_)) / 2
    else:
        weight[columns[classes]], bias[columns[classes]] = model.coef_, model.intercept_

"""What a model is measured by, from its averaged logits and the true labels; one row per video.

torchmetrics computes what it has; here is what it has not: joint accuracy of several heads, intervals by
bootstrap over videos, and the tables.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_average_precision,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multilabel_average_precision,
    multilabel_f1_score,
)

BINS = 15  # of calibration error and reliability curve, as in Guo et al., arXiv 1706.04599
RESAMPLES = 2000
Interval = tuple[float, float]


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the ``k`` highest: bool ``(n,)``."""
    best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    return (best == labels[:, None]).any(-1)


def joint_correct(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], k: int = 1) -> Tensor:
    """Whether the true combination is among the ``k`` likeliest of all combinations: bool ``(n,)``.

    A combination's probability is the product of its heads' softmaxes (EPIC-Kitchens: noun x verb). The ``k``
    best combinations are made of the ``k`` best classes of each head, so no more than those are combined.
    """
    best = {
        head: torch.log_softmax(x.float(), -1).topk(min(k, x.shape[-1]), -1) for head, x in logits.items()
    }
    scores, correct = [], []
    for picks in itertools.product(*(range(found.values.shape[-1]) for found in best.values())):
        chosen = list(zip(best.items(), picks, strict=True))
        scores.append(torch.stack([found.values[:, i] for (_, found), i in chosen]).sum(0))
        hits = [found.indices[:, i] == labels[head] for (head, found), i in chosen]
        correct.append(torch.stack(hits).all(0))
    order = torch.stack(scores, 1).topk(min(k, len(scores)), 1).indices
    return torch.stack(correct, 1).gather(1, order).any(1)


def bootstrap_interval(
    correct: npt.NDArray[Any], groups: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """95% percentile interval of the mean of ``correct``, resampling whole videos (``groups`` names them)."""
    _, place = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    hits = np.bincount(place, weights=np.asarray(correct, np.float64))
    sizes = np.bincount(place).astype(np.float64)
    draw, videos = np.random.default_rng(seed), len(sizes)
    means = np.empty(resamples)
    for i in range(resamples):
        chosen = draw.integers(videos, size=videos)
        means[i] = hits[chosen].sum() / sizes[chosen].sum()
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@dataclass
class HeadReport:
    """Measures of one head.

    Attributes:
        scores, intervals: by name.
        per_class: one row per class.
        confusion: counts ``[true, predicted]``.
        reliability: one row per bin of confidence.
    """

    scores: dict[str, float]
    intervals: dict[str, Interval]
    per_class: list[dict[str, Any]]
    confusion: npt.NDArray[np.int64] | None = None
    reliability: list[dict[str, float]] = field(default_factory=list)


def single_label_report(
    logits: Tensor, labels: Tensor, names: Sequence[str], groups: Sequence[str], *, seed: int = 0
) -> HeadReport:
    """Measures of a head with one label per video. ``logits`` ``(n, classes)``, ``labels`` int64 ``(n,)``.

    Scores: ``top1``, ``top5`` (from six classes on), ``mean_class_accuracy``, ``map`` and both over the
    classes that occur, ``ece``, ``loss``.
    """
    logits = logits.float()
    probabilities = torch.softmax(logits, -1)
    correct = {"top1": topk_correct(logits, labels, 1).numpy()}
    if len(names) > 5:
        correct["top5"] = topk_correct(logits, labels, 5).numpy()
    confusion = multiclass_confusion_matrix(logits, labels, len(names)).numpy()
    average_precision = _average_precision(probabilities, labels, len(names))
    table = _class_table(names, confusion, average_precision)
    seen = [row for row in table if row["videos"]]
    scores = {name: float(values.mean()) for name, values in correct.items()}
    scores["mean_class_accuracy"] = float(np.mean([row["recall"] for row in seen]))
    scores["map"] = float(np.mean([row["average_precision"] for row in seen]))
    scores["ece"] = float(multiclass_calibration_error(probabilities, labels, len(names), n_bins=BINS))
    scores["loss"] = float(torch.nn.functional.cross_entropy(logits, labels))
    intervals = {name: bootstrap_interval(values, groups, seed=seed) for name, values in correct.items()}
    confidence = probabilities.amax(-1).numpy()
    return HeadReport(scores, intervals, table, confusion, reliability(confidence, correct["top1"]))


def multi_label_report(logits: Tensor, labels: Tensor, names: Sequence[str]) -> HeadReport:
    """Measures of a head with several labels per video. ``logits`` and ``labels`` (0 or 1): ``(n, classes)``.

    Scores: ``map`` (mean over the classes that occur), ``f1_micro`` and ``f1_macro`` at 0.5, ``loss``.
    """
    logits, labels = logits.float(), labels.long()
    probabilities = torch.sigmoid(logits)
    count = len(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without a positive; they are left out below
        found = multilabel_average_precision(probabilities, labels, count, average="none").numpy()
    videos = labels.sum(0).tolist()
    table = [
        {"class": name, "videos": videos[i], "average_precision": float(found[i]) if videos[i] else None}
        for i, name in enumerate(names)
    ]
    seen = [row["average_precision"] for row in table if row["average_precision"] is not None]
    scores = {"map": float(np.mean(seen)) if seen else 0.0}
    for average in ("micro", "macro"):
        scores[f"f1_{average}"] = float(multilabel_f1_score(probabilities, labels, count, average=average))
    scores["loss"] = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float()))
    hit = (probabilities > 0.5).long() == labels
    confidence = torch.maximum(probabilities, 1 - probabilities)
    return HeadReport(
        scores, {}, table, None, reliability(confidence.flatten().numpy(), hit.flatten().numpy())
    )


def reliability(
    confidence: npt.NDArray[Any], correct: npt.NDArray[Any], bins: int = BINS
) -> list[dict[str, float]]:
    """Mean confidence against accuracy, a row for each of the equal bins that holds something."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        here = place == i
        if here.any():
            rows.append(
                {
                    "confidence": float(confidence[here].mean()),
                    "accuracy": float(correct[here].mean()),
                    "count": int(here.sum()),
                }
            )
    return rows


def _average_precision(probabilities: Tensor, labels: Tensor, count: int) -> npt.NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that do not occur; they are left out of the mean
        found = multiclass_average_precision(probabilities, labels, count, average="none")
    result: npt.NDArray[Any] = found.numpy()
    return result


def _class_table(
    names: Sequence[str], confusion: npt.NDArray[np.int64], average_precision: npt.NDArray[Any]
) -> list[dict[str, Any]]:
    rows = []
    for i, name in enumerate(names):
        videos, predicted, right = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        others = confusion[i].copy()
        others[i] = 0
        rows.append(
            {
                "class": name,
                "videos": videos,
                "recall": right / videos if videos else None,
                "precision": right / predicted if predicted else None,
                "average_precision": float(average_precision[i]) if videos else None,
                "taken_for": names[int(others.argmax())] if others.any() else None,
            }
        )
    return rows

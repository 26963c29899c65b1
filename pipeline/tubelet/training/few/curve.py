"""The learning curve: what a head is worth with fewer labels, and what twice as many would bring.

It needs features alone, so it decodes nothing and reads no split but that of training: heads are fitted on
drawn labels and scored on groups that they were not drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tubelet.clips import generator
from tubelet.evaluation.metrics import Interval
from tubelet.training.few.folds import Folds
from tubelet.training.few.linear import fit_linear
from tubelet.training.few.task import Floats, Ints, Task

SIZES = (5, 10, 20, 50, 100, 200, 500, 1000)
# Draws of labels for each size, in each repeat of the folds.
DRAWS = 3


@dataclass(frozen=True)
class Point:
    """Scores with so many labels per class.

    Attributes:
        labels: per class; a class that has fewer gives all it has.
        clips: fitted on, the mean over draws.
        mean, interval: over draws and folds; the interval holds 95% of the draws.
    """

    labels: int
    clips: float
    mean: float
    interval: Interval
    draws: int


@dataclass(frozen=True)
class Curve:
    """Points by number of labels, the last one of all that there are, and the power law through them.

    Attributes:
        law: (limit, amplitude, exponent) of ``limit - amplitude * clips ** -exponent``; None: too few points.
        doubled: what that law says of twice the labels, with its interval over draws; a guess.
    """

    points: list[Point]
    measure: str
    law: tuple[float, float, float] | None
    doubled: float | None
    doubled_interval: Interval | None

    def rows(self) -> list[dict[str, Any]]:
        """Plain values, one row for each point."""
        return [
            {
                "labels_per_class": point.labels,
                "clips": round(point.clips, 1),
                self.measure: point.mean,
                "low": point.interval[0],
                "high": point.interval[1],
                "draws": point.draws,
            }
            for point in self.points
        ]


def learning_curve(
    features: Floats,
    task: Task,
    folds: Folds,
    strength: float,
    *,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
) -> Curve:
    """Draw labels, fit, score on the folds left out; again for each number of labels.

    Args:
        features: of clips, ``(n, width)``.
        strength: C of the linear head.
        sizes: labels per class; those that no class reaches are left out, and all labels are the last.
    """
    most = int(np.bincount(task.strata()).max())
    wanted = [size for size in sizes if size < most] + [most]
    scores = {size: _scores((features, task), folds, strength, seed, size) for size in wanted}
    points = []
    for size in wanted:
        values, clips = scores[size]
        low, high = np.percentile(values, (2.5, 97.5))
        points.append(Point(size, clips, float(values.mean()), (float(low), float(high)), len(values)))
    law = power_law([p.clips for p in points], [p.mean for p in points])
    if law is None:
        return Curve(points, task.measure, None, None, None)
    last = points[-1]
    guesses = _guesses(points, [scores[size][0] for size in wanted], seed)
    return Curve(points, task.measure, law, _at(law, 2 * last.clips), guesses)


def power_law(counts: Sequence[float], scores: Sequence[float]) -> tuple[float, float, float] | None:
    """``(limit, amplitude, exponent)`` of ``limit - amplitude * count ** -exponent``, by least squares.

    The limit lies between the best score seen and 1. None: fewer than three points.
    """
    from scipy.optimize import least_squares

    x, y = np.asarray(counts, np.float64), np.asarray(scores, np.float64)
    if len(x) < 3:
        return None
    scale = x[0]
    top = float(min(max(y.max(), 0.0), 1.0 - 1e-6))
    found = least_squares(
        lambda p: p[0] - p[1] * (x / scale) ** -p[2] - y,
        ((top + 1) / 2, max((top + 1) / 2 - y[0], 1e-3), 0.5),
        bounds=([top, 0.0, 0.01], [1.0, 1.0, 3.0]),
    )
    limit, amplitude, exponent = map(float, found.x)
    return limit, amplitude * scale**exponent, exponent


def _at(law: tuple[float, float, float], count: float) -> float:
    limit, amplitude, exponent = law
    return float(limit - amplitude * count**-exponent)


def _guesses(points: Sequence[Point], scores: Sequence[Floats], seed: int) -> Interval | None:
    """95% of what the law says of twice the labels, over resamples of the draws."""
    draw, found = np.random.default_rng(seed), []
    counts = [point.clips for point in points]
    for _ in range(200):
        means = [float(draw.choice(values, len(values)).mean()) for values in scores]
        law = power_law(counts, means)
        if law is not None:
            found.append(_at(law, 2 * counts[-1]))
    if not found:
        return None
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def _scores(
    data: tuple[Floats, Task], folds: Folds, strength: float, seed: int, size: int
) -> tuple[Floats, float]:
    """Mean score of each draw over all folds of its repeat ``(draws,)``, and the clips fitted on."""
    (features, task), values, counts = data, [], []
    with threadpool_limits(1):
        for repeat, pairs in enumerate(folds.repeats):
            for number in range(DRAWS):
                right = np.zeros(len(task))
                for fold, (fit, scored) in enumerate(pairs):
                    rows = drawn(task, fit, size, seed, repeat, number, fold)
                    head = fit_linear(features[rows], task.take(rows), [strength])[0]
                    right[scored] = task.take(scored).scores(head(features[scored]))
                    counts.append(len(rows))
                values.append(right.mean())
    return np.array(values), float(np.mean(counts))


def drawn(task: Task, rows: Ints, size: int, *names: int) -> Ints:
    """At most ``size`` of ``rows`` of each class; of the same names, a smaller draw is part of a larger."""
    strata = task.strata()[rows]
    order = generator("curve", *names).permutation(len(rows))
    kept = [order[strata[order] == c][:size] for c in np.unique(strata)]
    return np.sort(rows[np.concatenate(kept)])

"""What the best of many candidates is worth: the choice itself is part of what is judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tubelet.evaluation.metrics import Interval
from tubelet.training.few.task import Floats

RESAMPLES = 1000


@dataclass(frozen=True)
class Corrected:
    """What a choice among the candidates scores on clips that it was not made on: mean and 95% interval."""

    mean: float
    interval: Interval


def corrected(scores: Floats, groups: npt.NDArray[np.str_], *, seed: int = 0) -> Corrected:
    """Bootstrap bias corrected cross-validation (Tsamardinos et al. 2018, arXiv 1708.07180).

    In each resample of whole groups the best candidate of those in the bag is taken, and scored on the
    groups left out: so the figure is not that of the luckiest of the candidates.

    Args:
        scores: of out-of-fold predictions, ``(candidates, n)``.
        groups: ``(n,)``.
    """
    _, place = np.unique(groups, return_inverse=True)
    count = int(place.max()) + 1
    sums = np.stack([np.bincount(place, row, count) for row in scores])
    sizes = np.bincount(place, minlength=count).astype(np.float64)
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        times = np.bincount(draw.integers(count, size=count), minlength=count)
        out = times == 0
        if out.any():
            best = int((sums @ times).argmax())
            found.append(sums[best, out].sum() / sizes[out].sum())
    if not found:
        return Corrected(float(scores.mean(1).max()), (0.0, 1.0))
    low, high = np.percentile(found, (2.5, 97.5))
    return Corrected(float(np.mean(found)), (float(low), float(high)))

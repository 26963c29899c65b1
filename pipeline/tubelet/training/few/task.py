"""What is to be told apart, and how good an answer is: the same for every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tubelet.training.examples import Targets

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Labelled clips, one row each.

    Attributes:
        labels: class names of each head, in the order of the logits.
        targets: of each head int64 ``(n,)`` class numbers, or uint8 ``(n, classes)`` with ``multilabel``.
        groups: ``(n,)``, what must not be torn apart (the scene or the person; else the video).
        multilabel: a clip may have several labels.
    """

    labels: Mapping[str, list[str]]
    targets: Targets
    groups: npt.NDArray[Any]
    multilabel: bool = False

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def width(self) -> int:
        """Logits of a clip: the classes of all heads."""
        return sum(len(names) for names in self.labels.values())

    @property
    def measure(self) -> str:
        """What :meth:`scores` gives the mean of."""
        return "lrap" if self.multilabel else "top1"

    def columns(self) -> dict[str, slice]:
        """Where the logits of each head stand."""
        found, start = {}, 0
        for head, names in self.labels.items():
            found[head] = slice(start, start + len(names))
            start += len(names)
        return found

    def take(self, rows: Ints) -> Task:
        """The same of some of the clips."""
        targets = {head: values[rows] for head, values in self.targets.items()}
        return Task(self.labels, targets, self.groups[rows], self.multilabel)

    def strata(self) -> Ints:
        """One class number per clip to stratify by: of the first head, its rarest label."""
        first = next(iter(self.targets.values()))
        if not self.multilabel:
            return np.asarray(first, np.int64)
        rarity = np.where(first > 0, first.sum(0)[None], len(first) + 1)
        return np.asarray(rarity.argmin(1), np.int64)

    def counts(self) -> dict[str, dict[str, int]]:
        """Clips of each class, by head."""
        found = {}
        for head, names in self.labels.items():
            values = self.targets[head]
            sums = values.sum(0) if self.multilabel else np.bincount(values, minlength=len(names))
            found[head] = dict(zip(names, map(int, sums), strict=True))
        return found

    def scores(self, logits: Floats) -> Floats:
        """How good each clip's logits ``(n, width)`` are, ``(n,)`` in 0 to 1.

        One label: whether the likeliest class is right (several heads: the share of them). Several labels:
        the average precision of the ranking of the labels, whose mean over clips is LRAP.
        """
        parts = [self._one(logits[:, where], self.targets[head]) for head, where in self.columns().items()]
        mean: Floats = np.mean(parts, axis=0)
        return mean

    def losses(self, logits: Floats) -> Floats:
        """Cross-entropy of each clip ``(n,)``, the mean over heads."""
        parts = []
        for head, where in self.columns().items():
            found, target = logits[:, where], self.targets[head]
            if self.multilabel:
                parts.append((np.logaddexp(0, found) - found * target).mean(1))
            else:
                top = found.max(1, keepdims=True)
                norm = top[:, 0] + np.log(np.exp(found - top).sum(1))
                parts.append(norm - found[np.arange(len(found)), target])
        mean: Floats = np.mean(parts, axis=0)
        return mean

    def _one(self, logits: Floats, target: npt.NDArray[Any]) -> Floats:
        if not self.multilabel:
            return np.asarray(logits.argmax(1) == target, np.float64)
        order = np.argsort(-logits, axis=1, kind="stable")
        hits = np.take_along_axis(target, order, 1).astype(np.float64)
        precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
        return np.asarray((precision * hits).sum(1) / np.maximum(hits.sum(1), 1))

"""The choice among the candidates, made on clips that they were not fitted on, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.evaluation.metrics import Interval, bootstrap_interval
from tubelet.training.few.candidates import Candidate, ensemble_of
from tubelet.training.few.folds import Folds
from tubelet.training.few.honest import Corrected, corrected
from tubelet.training.few.task import Task

# A class of fewer clips can neither be learnt nor judged.
FEWEST = 5


@dataclass(frozen=True)
class Choice:
    """What was chosen, and out of what.

    Attributes:
        chosen: the candidate that the model is made of.
        candidates: all of them, the best first; of linear heads that differ in strength alone, the best.
        means, intervals: of each candidate, in their order: score out of fold, 95% over groups.
        corrected: what choosing so is worth, the luck of the choice taken off.
        warnings: what a person should know before trusting it.
    """

    chosen: Candidate
    candidates: list[Candidate]
    means: list[float]
    intervals: list[Interval]
    corrected: Corrected
    folds: Folds
    warnings: list[str]

    def rows(self, task: Task) -> list[dict[str, Any]]:
        """The table of the candidates, the best first."""
        return [
            {
                "candidate": candidate.name,
                "family": candidate.family,
                "chosen": candidate is self.chosen,
                task.measure: mean,
                "low": interval[0],
                "high": interval[1],
                "loss": candidate.loss(task),
                "folds": len(candidate.logits) * len(self.folds.repeats[0]),
                "seconds": round(candidate.seconds, 2),
                "note": candidate.note,
            }
            for candidate, mean, interval in zip(self.candidates, self.means, self.intervals, strict=True)
        ]


def choose(found: Sequence[Candidate], task: Task, folds: Folds, *, seed: int = 0) -> Choice:
    """The candidate with the best mean score out of fold; of equals that of least loss, then the first.

    Raises:
        ValueError: none of them can become a model.
    """
    everything = [*found, *_ensembles(found, task)]
    if not any(candidate.choosable for candidate in everything):
        raise ValueError("no candidate that a model can be made of")
    scores = np.stack([candidate.scores(task) for candidate in everything])
    order = sorted(range(len(everything)), key=lambda i: _rank(everything[i], scores[i].mean(), task))
    usable = [i for i in order if everything[i].choosable]
    chosen = everything[usable[0]]
    shown = _best_strengths([everything[i] for i in order])
    places = [next(i for i, one in enumerate(everything) if one is candidate) for candidate in shown]
    groups: list[str] = task.groups.astype(str).tolist()
    means = [float(scores[i].mean()) for i in places]
    intervals = [bootstrap_interval(scores[i], groups, seed=seed) for i in places]
    worth = corrected(scores[usable], np.array(groups), seed=seed)
    choice = Choice(chosen, shown, means, intervals, worth, folds, [])
    return Choice(chosen, shown, means, intervals, worth, folds, _warnings(choice, task))


def _ensembles(found: Sequence[Candidate], task: Task) -> list[Candidate]:
    """The mean of the two best linear heads of different features, where one model can hold it."""
    linear = [c for c in _ranked(found, task) if c.family == "linear"]
    best = _best_strengths(linear)
    if len(best) < 2:
        return []
    both = ensemble_of(best[0], best[1])
    return [] if both is None else [both]


def _ranked(found: Sequence[Candidate], task: Task) -> list[Candidate]:
    return sorted(found, key=lambda c: _rank(c, c.scores(task).mean(), task))


def _rank(candidate: Candidate, mean: float, task: Task) -> tuple[float, float]:
    """Smaller is better. Rounded: the last bits differ from processor to processor, and are no reason."""
    return -round(float(mean), 9), round(candidate.loss(task), 6)


def _best_strengths(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Of linear heads that differ in strength alone, the first."""
    seen, kept = set(), []
    for candidate in ranked:
        kind = (candidate.family, candidate.tokens, candidate.pool, candidate.layers)
        if candidate.strength is None or kind not in seen:
            kept.append(candidate)
        seen.add(kind)
    return kept


def _warnings(choice: Choice, task: Task) -> list[str]:
    """What the figures alone do not say."""
    lines = list(choice.folds.notes)
    for head, counts in task.counts().items():
        few = {name: count for name, count in counts.items() if count < FEWEST}
        if few:
            shown = ", ".join(f"{name!r} {count}" for name, count in list(few.items())[:5])
            lines.append(
                f"{len(few)} classes of {head} have under {FEWEST} clips to train on ({shown}): "
                "label more of them, or leave them out"
            )
    for head, where in task.columns().items():
        best = np.mean([one[:, where] for one in choice.chosen.logits], axis=0).argmax(1)
        if not task.multilabel and len(np.unique(best)) == 1:
            name = task.labels[head][int(best[0])]
            lines.append(f"out of fold, every clip is called {name!r}: the head has learnt nothing")
    one = [mean for c, mean in zip(choice.candidates, choice.means, strict=True) if c.family == "frame"]
    best_mean = next(
        mean for c, mean in zip(choice.candidates, choice.means, strict=True) if c is choice.chosen
    )
    if one and max(one) >= best_mean:
        lines.append(
            f"a linear head on one frame does as well ({max(one):.3f} against {best_mean:.3f}): "
            "what tells the classes apart is no motion, and may be the scene"
        )
    return lines


def leaking_groups(splits: Sequence[str | None], groups: Sequence[str | None]) -> list[str]:
    """A warning for each pair of splits that share groups."""
    by_split: dict[str, set[str]] = {}
    for split, group in zip(splits, groups, strict=True):
        if split is not None and group is not None:
            by_split.setdefault(split, set()).add(group)
    train = by_split.pop("train", set())
    lines = []
    for split, names in sorted(by_split.items()):
        shared = sorted(train & names)
        if shared:
            lines.append(
                f"{len(shared)} groups are in train and in {split}, such as {shared[0]!r}: scores on {split} "
                "flatter the model; index again with --split group:… or a column that keeps groups apart"
            )
    return lines

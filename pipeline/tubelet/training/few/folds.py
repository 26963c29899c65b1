"""Folds of cross-validation: stratified, repeated, and never a group on both sides."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from tubelet.clips import seed_of
from tubelet.training.few.task import Ints, Task


@dataclass(frozen=True)
class Folds:
    """Repeated cross-validation.

    Attributes:
        repeats: of each repeat, its folds: rows to fit on, rows to score. Every row is scored once a repeat.
        grouped: groups are kept together; else only the rows of one video are.
        lacking_fit: folds whose fitting rows lack a class, so that its clips there must be wrong.
        lacking_scored: folds whose scored rows lack a class.
        notes: what a person should know of them.
    """

    repeats: list[list[tuple[Ints, Ints]]]
    grouped: bool = True
    lacking_fit: int = 0
    lacking_scored: int = 0
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(folds) for folds in self.repeats)

    @property
    def first(self) -> Folds:
        """The first repeat alone."""
        return Folds(self.repeats[:1], self.grouped)


def make_folds(task: Task, videos: Ints, *, folds: int, repeats: int, seed: int) -> Folds:
    """Stratified folds of ``task``, drawn anew for each repeat.

    Args:
        videos: int ``(n,)``, the number of each row's video: kept together even where groups cannot be.
        folds: at most; never more than there are groups.
    """
    strata = task.strata()
    _, groups = np.unique(task.groups.astype(str), return_inverse=True)
    notes = []
    grouped = any(len(np.unique(groups[strata == c])) > 1 for c in np.unique(strata))
    if not grouped:
        groups = videos
        notes.append(
            "every class comes from a single group, so groups cannot be kept apart: cross-validated over "
            "videos, which flatters every figure"
        )
    count = max(2, min(folds, len(np.unique(groups))))
    found = [
        _one_repeat(strata, groups, count, repeat, seed_of("folds", seed, repeat) % 2**32)
        for repeat in range(repeats)
    ]
    lacking = [_lacking(strata, rows) for repeat in found for rows in repeat]
    fit, scored = (sum(pair[i] for pair in lacking) for i in range(2))
    if fit:
        notes.append(
            f"{fit} of {len(lacking)} folds lack a class to fit: a class of one group is never on both sides"
        )
    return Folds(found, grouped, fit, scored, notes)


def _one_repeat(strata: Ints, groups: Ints, count: int, repeat: int, seed: int) -> list[tuple[Ints, Ints]]:
    rows = np.zeros(len(strata))
    if len(np.unique(groups)) == len(groups):
        count = max(2, min(count, int(np.bincount(strata).max())))
        splitter = StratifiedKFold(n_splits=count, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes with fewer clips than folds: counted
            pairs = list(splitter.split(rows, strata))
    elif repeat == 0:
        grouped = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
        pairs = list(grouped.split(rows, strata, groups))
    else:
        # That splitter shuffles only groups of equal make-up: of few large ones, every repeat is the same.
        fold = _dealt(strata, groups, count, seed)[groups]
        pairs = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(count)]
    return [(fit.astype(np.int64), scored.astype(np.int64)) for fit, scored in pairs if len(scored)]


def _dealt(strata: Ints, groups: Ints, count: int, seed: int) -> Ints:
    """The fold of each group, ``(groups,)``: dealt in random order, large ones sooner.

    Each goes where the classes stay most even over the folds.
    """
    sizes = np.zeros((int(groups.max()) + 1, int(strata.max()) + 1))
    np.add.at(sizes, (groups, strata), 1)
    shares = sizes / np.maximum(sizes.sum(0), 1)
    draw = np.random.default_rng(seed)
    order = np.argsort(-sizes.sum(1) * np.exp(draw.normal(size=len(sizes))))
    held, fold = np.zeros((count, sizes.shape[1])), np.zeros(len(sizes), np.int64)
    for group in order:
        uneven = [
            np.std(held + np.eye(count)[f][:, None] * shares[group], axis=0).mean() for f in range(count)
        ]
        fold[group] = int(np.argmin(uneven))
        held[fold[group]] += shares[group]
    return fold


def _lacking(strata: Ints, rows: tuple[Ints, Ints]) -> tuple[bool, bool]:
    classes = len(np.unique(strata))
    fit, scored = (len(np.unique(strata[part])) < classes for part in rows)
    return fit, scored

"""Figures of a labelling job for MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from tubelet.labelling.drift import Expectation

_MOST_BARS = 40
_FOUND, _EXPECTED = "#0b6e69", "#c9c9c4"


def labels(share: Mapping[str, float], expected: Expectation | None) -> Figure:
    """Share of each label (the commonest), beside what the model's validation had."""
    names = sorted(share, key=lambda name: -share[name])[:_MOST_BARS] or ["none"]
    figure = Figure(figsize=(7, 1 + 0.24 * len(names)))
    axes = figure.subplots()
    places = np.arange(len(names))
    if expected is not None:
        wanted = [expected.share.get(name, 0.0) for name in names]
        axes.barh(places, wanted, height=0.8, color=_EXPECTED, label=expected.origin)
    axes.barh(places, [share.get(name, 0.0) for name in names], height=0.45, color=_FOUND, label="this job")
    axes.set_yticks(places, [_plain(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("share of the videos")
    axes.legend(frameon=False, fontsize=8)
    return _bare(figure, axes)


def scores(counts: Any) -> Figure:
    """Histogram of the scores of the first label; ``counts`` of equal bins over 0 to 1."""
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=_FOUND)
    axes.set_xlim(0, 1)
    axes.set_xlabel("score of the label")
    axes.set_ylabel("videos")
    return _bare(figure, axes)


def _plain(name: str) -> str:
    """A label may hold what matplotlib takes for a formula."""
    return name.replace("$", r"\$")[:60]


def _bare(figure: Figure, axes: Any) -> Figure:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure

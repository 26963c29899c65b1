"""Figures of an evaluation: confusion, reliability, accuracy by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tubelet.evaluation.metrics import HeadReport

# Names are readable up to this many classes; beyond it, the figure shows the pattern only.
_NAMED_CLASSES = 60


def evaluation_figures(reports: Mapping[str, HeadReport]) -> Iterator[tuple[str, Figure]]:
    """``(file name, figure)`` for each head: what it confuses, how far its scores can be trusted."""
    for head, report in reports.items():
        prefix = "" if len(reports) == 1 else f"{head}_"
        names = [str(row["class"]) for row in report.per_class]
        if report.confusion is not None:
            yield f"{prefix}confusion.png", confusion_figure(report.confusion, names)
        if report.reliability:
            yield f"{prefix}reliability.png", reliability_figure(report.reliability, report.scores.get("ece"))


def confusion_figure(confusion: npt.NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Rows are true classes, columns predicted ones; shades are shares of the row, numbers are counts."""
    count = len(names)
    side = min(4 + 0.35 * count, 24)
    figure, axes = _axes(side, side)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= _NAMED_CLASSES:
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    if count <= 25:
        for i, j in zip(*np.nonzero(confusion), strict=True):
            shade = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(confusion[i, j]), ha="center", va="center", color=shade, fontsize=8)
    return figure


def reliability_figure(bins: Sequence[Mapping[str, float]], ece: float | None) -> Figure:
    """Accuracy against confidence; on the diagonal a score means what it says. Dots grow with the count."""
    figure, axes = _axes(5, 5)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    x, y, n = (np.array([row[name] for row in bins]) for name in ("confidence", "accuracy", "count"))
    axes.plot(x, y, color="tab:blue", linewidth=1)
    axes.scatter(x, y, s=20 + 200 * n / n.sum(), color="tab:blue")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="mean confidence", ylabel="share that is right")
    axes.set_title("Reliability" if ece is None else f"Reliability, calibration error {ece:.3f}")
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    # The object interface, not pyplot: it keeps no global state and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()

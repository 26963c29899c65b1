"""A tracker that tracks nothing, for jobs that are not worth a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tubelet.tracking.tracker import Status, Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tubelet.tracking.registry import ModelLink


class NoTracker(Tracker):
    """Takes what :class:`Tracker` takes, and keeps none of it."""

    def __init__(self) -> None:
        pass

    @property
    def on(self) -> bool:
        """See :attr:`Tracker.on`."""
        return False

    @property
    def run_id(self) -> str:
        """Of no run: empty."""
        return ""

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Nothing."""

    def log_params(self, values: Mapping[str, object]) -> None:
        """Nothing."""

    def set_tags(self, values: Mapping[str, object]) -> None:
        """Nothing."""

    def log_table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Nothing."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Nothing."""

    def link_model(self, link: ModelLink) -> None:
        """Nothing."""

    def log_dataset(self, source: str, digest: str, context: str, rows: int) -> None:
        """Nothing."""

    def flush(self, timeout_s: float = 60) -> bool:
        """Nothing is left to send."""
        return True

    def finish(self, status: Status = "FINISHED", wait_s: float = 60) -> None:
        """Nothing."""

    def _log_artifact(self, name: str, write: Callable[[Path], object]) -> None:
        pass

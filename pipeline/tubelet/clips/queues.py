"""How much waits before each stage of a Ray Data execution, as a figure for Prometheus."""

from __future__ import annotations

import re
import time
from typing import Any

from ray.data import DataContext

from tubelet.metrics import set_queue_length

_EVERY_S = 5.0
_STAGE = re.compile(r"\((\w+)\)")


def watch_queues(context: DataContext) -> None:
    """Have executions under ``context`` tell how many blocks wait before each of their stages."""
    others = [each for each in context.custom_execution_callback_classes if each is not _Queues]
    context.custom_execution_callback_classes = [*others, _Queues]


class _Queues:
    """Ray Data calls it once per turn of its loop."""

    def __init__(self) -> None:
        self._told_s = float("-inf")

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing waits yet; Ray Data asks for it."""

    def on_execution_step(self, executor: Any) -> None:
        """Look at the queues from time to time."""
        if time.monotonic() - self._told_s > _EVERY_S:
            self._told_s = time.monotonic()
            self._tell(executor, over=False)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing waits any more."""
        self._tell(executor, over=True)

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing waits any more."""
        self._tell(executor, over=True)

    def _tell(self, executor: Any, *, over: bool) -> None:
        for operator, state in (getattr(executor, "_topology", None) or {}).items():
            stage = _STAGE.search(operator.name)  # those that run what is ours: MapBatches(BlockDecoder)
            if stage is not None:
                set_queue_length(stage[1], 0 if over else int(state.total_enqueued_input_blocks()))

"""A Ray Data execution that waits sleeps.

Its scheduling loop waits for tasks that end, 0.1 s at most. Where what they made may not be read yet, because
the consumer is slower than the decoders and the object store has its fill, all have ended, and the loop turns
as fast as it can: three quarters of a core, taken from a rank on the same machine (Ray 2.60).
"""

from __future__ import annotations

import time
from typing import Any

from ray.data import DataContext

_LONGEST_PAUSE_S = 0.1
# A shorter turn has not waited.
_SHORT_TURN_S = 0.01


def throttle_scheduler(context: DataContext) -> None:
    """Have executions under ``context`` sleep where they would spin."""
    others = [each for each in context.custom_execution_callback_classes if each is not _Pace]
    context.custom_execution_callback_classes = [*others, _Pace]


class _Pace:
    """Ray Data calls it once per turn of its loop."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._woke_s = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """After a turn that waited for nothing, sleep; longer each time in a row."""
        del executor
        turn_s = time.monotonic() - self._woke_s
        self._pause_s = min(2 * self._pause_s + 0.001, _LONGEST_PAUSE_S) if turn_s < _SHORT_TURN_S else 0.0
        time.sleep(self._pause_s)
        self._woke_s = time.monotonic()

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing; Ray Data asks for it."""

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing; Ray Data asks for it."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing; Ray Data asks for it."""

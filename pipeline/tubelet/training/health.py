"""Whether a run is well: too many clips that fail, and numbers that are none.

Every rank sees the same totals of each global batch, so all come to the same verdict at the same step.
"""

from __future__ import annotations

import math
from enum import StrEnum

from tubelet.error_rate import ErrorWindow

# Failed clips are judged once this many were seen, so that one broken video at the start ends nothing.
JUDGED_CLIPS = 64
# Failed clips beyond those that the limit allows that make a run suspicious.
_EXCESS_CLIPS = 2
# That many clips in a row of batches without any good one are an outage, not a few bad files.
_OUTAGE_CLIPS = 16


class Outcome(StrEnum):
    """Why the ranks ended."""

    DONE = "done"
    STOPPED = "stopped"
    TOO_MANY_ERRORS = "too many errors"
    DIVERGED = "diverged"
    TAKEN_OVER = "taken over"
    """Another job has the output now: whatever this one wrote would harm that one."""
    DISK_FULL = "disk full"
    """No checkpoint can be written any more."""

    @property
    def is_sound(self) -> bool:
        """Whether the state at the end is worth a checkpoint."""
        return self in {Outcome.DONE, Outcome.STOPPED}


class Health:
    """The verdict on a run after each of its steps.

    Args:
        max_error_rate: share of failed clips in the window that ends the run.
        max_skipped_steps: steps in a row that the scaler of fp16 may leave out; None: the precision has none,
            so the first number that is not finite ends the run.
    """

    def __init__(self, max_error_rate: float, max_skipped_steps: int | None) -> None:
        self._max_error_rate, self._max_skipped_steps = max_error_rate, max_skipped_steps
        self.window = ErrorWindow()
        self._skipped_steps = self._lost_clips = 0
        # A cumulative sum (CUSUM): failures beyond the limit since the step that it last was 0 before.
        self._excess, self._excess_since = 0.0, 0
        self.problem = ""
        """What was not finite, and at which step."""

    def see_clips(self, step: int, clips: int, failed: int) -> Outcome:
        """Count the clips of a global batch."""
        self.window.add(clips, failed)
        self._lost_clips = self._lost_clips + clips if failed == clips else 0
        if not self._excess:
            self._excess_since = step
        self._excess = max(0.0, self._excess + failed - self._max_error_rate * clips)
        too_many = self.window.rows >= JUDGED_CLIPS and self.window.exceeds(self._max_error_rate)
        return Outcome.TOO_MANY_ERRORS if too_many else Outcome.DONE

    @property
    def failing_since(self) -> int | None:
        """Step (from 0) at which the failures began that make the run suspicious; None: it is well."""
        return self._excess_since if self._excess > _EXCESS_CLIPS else None

    def see_numbers(self, step: int, loss: float, norm: float) -> Outcome:
        """Look at a global batch's mean loss and gradient norm."""
        if math.isfinite(loss) and math.isfinite(norm):
            self._skipped_steps = 0
            return Outcome.DONE
        self._skipped_steps += 1
        if self._max_skipped_steps is not None and self._skipped_steps <= self._max_skipped_steps:
            return Outcome.DONE
        what = "gradient" if math.isfinite(loss) else "loss"
        more = f" (and of the {self._skipped_steps - 1} before)" if self._skipped_steps > 1 else ""
        return self.diverged(what, step, more)

    def diverged(self, what: str, step: int, more: str = "") -> Outcome:
        """Note that ``what`` is not finite at ``step``."""
        self.problem = f"the {what} of step {step}{more} is not a finite number"
        return Outcome.DIVERGED

    def at_end(self) -> Outcome:
        """The verdict once all steps were done: not done where the last of them had no clip to learn from."""
        lost = self._lost_clips >= _OUTAGE_CLIPS
        return Outcome.TOO_MANY_ERRORS if lost and self._max_error_rate < 1 else Outcome.DONE

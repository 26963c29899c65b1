"""Ends a job that is broken as a whole: wrong credentials, a bucket of something else, a store gone."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from tubelet.config import UserError

MaxErrorRate = Annotated[float, Field(ge=0, le=1)]
"""The share of videos that may fail before a job ends, 0 to 1."""

WINDOW = 1000
# At the end of a small job the rate counts from this many rows on: two broken files of three say nothing.
_AT_LEAST = 10


class ErrorWindow:
    """Failures among the last ``size`` rows, kept per batch of rows.

    Attributes:
        rows: how many the window holds; more than ``size`` by a part of the oldest batch.
        failed: how many of them failed.
        reasons: of those that failed, by code, as far as codes were given.
    """

    def __init__(self, size: int = WINDOW) -> None:
        self._size = size
        self._batches: deque[tuple[int, int, str | None]] = deque()  # rows, failed, the code of these
        self.rows = self.failed = 0
        self.reasons: Counter[str] = Counter()

    def add(self, rows: int, failed: int, code: str | None = None) -> None:
        """Count a batch; those that are no longer needed to fill the window go."""
        self._batches.append((rows, failed, code))
        self._count(rows, failed, code)
        while self.rows - self._batches[0][0] >= self._size:
            old, old_failed, old_code = self._batches.popleft()
            self._count(-old, -old_failed, old_code)

    def _count(self, rows: int, failed: int, code: str | None) -> None:
        self.rows += rows
        self.failed += failed
        if code is not None:
            self.reasons[code] += failed

    def exceeds(self, rate: float) -> bool:
        """Whether more than a share ``rate`` of the rows failed."""
        return self.failed > rate * self.rows


class ErrorRate:
    """Watches the share of failures among the last thousand rows.

    Args:
        maximum: the share that is allowed.
        advice: what to do about it, for the error's second line.
        at_least: a job of fewer rows is not judged at its end.
    """

    def __init__(self, maximum: float, advice: str, *, at_least: int = _AT_LEAST) -> None:
        self.maximum, self._advice, self._at_least = maximum, advice, at_least
        self.examples: dict[str, str] = {}
        self._window = ErrorWindow()

    @property
    def reasons(self) -> Mapping[str, int]:
        """Failures among the last thousand rows, by code."""
        return +self._window.reasons

    def see(self, code: str | None, reason: str | None = None) -> None:
        """One more row; ``code`` is None where it is well.

        Raises:
            UserError: more than the allowed share of the last thousand failed.
        """
        self._window.add(1, int(code is not None), code)
        if code is not None:
            self.examples.setdefault(code, reason or "")
        self._judge_window()

    def see_well(self, rows: int) -> None:
        """``rows`` more, all of them well.

        Raises:
            UserError: as :meth:`see`.
        """
        if rows:
            self._window.add(rows, 0)
            self._judge_window()

    def _judge_window(self) -> None:
        if self._window.rows >= WINDOW:
            self.check(self._window.failed, self._window.rows, self.reasons, self.examples)

    def judge(self, rows: int, errors: Mapping[str, int], examples: Mapping[str, str]) -> None:
        """The job is done; one of less than a thousand rows is judged by all that it made of them.

        Raises:
            UserError: too many failed.
        """
        if self._at_least <= rows < WINDOW:
            self.check(sum(errors.values()), rows, errors, examples)

    def check(self, failed: int, rows: int, reasons: Mapping[str, int], examples: Mapping[str, str]) -> None:
        """Judge ``failed`` of ``rows``.

        Raises:
            UserError: too many; names the commonest reasons.
        """
        if failed <= self.maximum * rows:
            return
        told = commonest(reasons, examples)
        raise UserError(
            f"{failed} of the last {rows} videos failed, more than --max-error-rate "
            f"{self.maximum:g}: {told}.\n"
            f"{self._advice}, or raise --max-error-rate"
        )


def commonest(reasons: Mapping[str, int], examples: Mapping[str, str]) -> str:
    """The three commonest codes with their numbers and an example of each."""
    found = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    return "; ".join(f"{count} {code} ({examples.get(code) or 'no message'})" for code, count in found)

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


class ErrorRate:
    """Watches the share of failures among the last thousand rows.

    Args:
        maximum: the share that is allowed.
        advice: what to do about it, for the error's second line.
        at_least: a job of fewer rows is not judged at its end.
    """

    def __init__(self, maximum: float, advice: str, *, at_least: int = _AT_LEAST) -> None:
        self.maximum, self._advice, self._at_least = maximum, advice, at_least
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._last: deque[bool] = deque(maxlen=WINDOW)
        self._failed = 0

    def see(self, code: str | None, reason: str | None = None) -> None:
        """One more row; ``code`` is None where it is well.

        Raises:
            UserError: more than the allowed share of the last thousand failed.
        """
        if len(self._last) == WINDOW:
            self._failed -= self._last[0]
        self._last.append(code is not None)
        if code is not None:
            self._failed += 1
            self.reasons[code] += 1
            self.examples.setdefault(code, reason or "")
        if len(self._last) == WINDOW:
            self.check(self._failed, WINDOW, self.reasons, self.examples)

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
        commonest = sorted(reasons.items(), key=lambda item: -item[1])[:3]
        told = "; ".join(
            f"{count} {code} ({examples.get(code) or 'no message'})" for code, count in commonest
        )
        raise UserError(
            f"{failed} of the last {rows} videos failed, more than --max-error-rate "
            f"{self.maximum:g}: {told}.\n"
            f"{self._advice}, or raise --max-error-rate"
        )

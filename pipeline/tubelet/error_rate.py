"""Ends a job that is broken as a whole: wrong credentials, a bucket of something else, a store gone."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from tubelet.config import UserError

WINDOW = 1000
# At the end of a small job the rate counts from this many rows on: two broken files of three say nothing.
_AT_LEAST = 10


class ErrorGuard:
    """Watches the share of failures among the last thousand rows."""

    def __init__(self, max_error_rate: float) -> None:
        self.max_error_rate = max_error_rate
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
            self._check()

    def judge(self, rows: int, errors: Mapping[str, int], examples: Mapping[str, str]) -> None:
        """The job is done; one of less than a thousand rows is judged by all that it made of them.

        Raises:
            UserError: too many failed.
        """
        failed = sum(errors.values())
        if _AT_LEAST <= rows < WINDOW and failed > self.max_error_rate * rows:
            raise too_many_errors(failed, rows, errors, examples, self.max_error_rate)

    def _check(self) -> None:
        if self._failed > self.max_error_rate * len(self._last):
            raise too_many_errors(
                self._failed, len(self._last), self.reasons, self.examples, self.max_error_rate
            )


def too_many_errors(
    failed: int, of: int, reasons: Mapping[str, int], examples: Mapping[str, str], max_error_rate: float
) -> UserError:
    """The error that names the commonest reasons."""
    commonest = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    told = "; ".join(f"{count} {code} ({examples.get(code) or 'no message'})" for code, count in commonest)
    return UserError(
        f"{failed} of the last {of} videos failed, more than --max-error-rate {max_error_rate:g}: {told}.\n"
        "What is done is published: mend the cause and set --retry-errors, or raise --max-error-rate"
    )

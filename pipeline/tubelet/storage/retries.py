"""The one way to try something again: with pauses that grow and are spread at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tubelet.storage.errors import is_transient

if TYPE_CHECKING:
    import tenacity

_T = TypeVar("_T")

# A store that is away for longer than this ends the job; nothing is lost, and running it again resumes.
PATIENCE_S = 600.0


def with_retries(
    action: Callable[[], _T],
    *,
    retry_on: Callable[[BaseException], bool] | type[Exception] | tuple[type[Exception], ...] = is_transient,
    attempts: int | None = None,
    patience_s: float | None = None,
    first_pause_s: float = 0.5,
    most_pause_s: float = 15.0,
    on_retry: Callable[[BaseException], None] | None = None,
) -> _T:
    """Run ``action`` until it succeeds, fails in a way that no further try mends, or the end is reached.

    Args:
        action: what to do; it must do no harm when it is done twice.
        retry_on: the failures worth another try, as types or a question. Default: a store that is away.
        attempts: how often to try at most.
        patience_s: for how long to try; without it and ``attempts``, :data:`PATIENCE_S`.
        first_pause_s: the first pause; the next ones double, each with a random part so that many clients do
            not come back at the same moment.
        most_pause_s: the longest pause.
        on_retry: told of each failure that is tried again, before the pause.

    Returns:
        What ``action`` returned.

    Raises:
        Exception: the last failure, as ``action`` raised it.
    """
    import tenacity  # a decode process imports this module, and seldom needs it

    if patience_s is None and attempts is None:
        patience_s = PATIENCE_S
    stops = [] if attempts is None else [tenacity.stop_after_attempt(attempts)]
    ends = [] if patience_s is None else [tenacity.stop_before_delay(patience_s)]
    wanted = tenacity.retry_if_exception(
        (lambda error: isinstance(error, retry_on)) if isinstance(retry_on, (type, tuple)) else retry_on
    )

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if on_retry is not None and error is not None:
            on_retry(error)

    retrying = tenacity.Retrying(
        retry=wanted,
        stop=tenacity.stop_any(*stops, *ends),
        wait=tenacity.wait_exponential_jitter(first_pause_s, most_pause_s, jitter=first_pause_s),
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(action)

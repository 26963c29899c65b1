"""Trying again: only what may pass, only for so long."""

from __future__ import annotations

import time

import pytest
from tubelet.storage import CredentialsError, StoreUnavailableError, is_transient, with_retries


class Flaky:
    """Fails with the errors it was given, then answers 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_an_outage_is_waited_out() -> None:
    seen: list[BaseException] = []
    action = Flaky(StoreUnavailableError("503"), StoreUnavailableError("cut"))
    assert with_retries(action, attempts=3, first_pause_s=0.01, on_retry=seen.append) == 7
    assert [str(error) for error in seen] == ["503", "cut"]


def test_what_no_retry_mends_is_raised_at_once() -> None:
    action = Flaky(CredentialsError("expired"))
    with pytest.raises(CredentialsError, match="expired"):
        with_retries(action)
    assert action.calls == 1


def test_the_last_failure_is_raised_as_it_was() -> None:
    action = Flaky(*[ValueError(str(i)) for i in range(9)])
    with pytest.raises(ValueError, match="2"):
        with_retries(action, retry_on=ValueError, attempts=3, first_pause_s=0.01)


def test_patience_ends() -> None:
    action = Flaky(*[OSError(str(i)) for i in range(99)])
    began_s = time.monotonic()
    with pytest.raises(OSError, match=r"\d"):
        with_retries(action, retry_on=(OSError,), patience_s=0.3, first_pause_s=0.02, most_pause_s=0.05)
    assert time.monotonic() - began_s < 2
    assert action.calls > 3


def test_a_cause_that_may_pass_makes_an_error_transient() -> None:
    outer = ValueError("cannot open")
    outer.__cause__ = StoreUnavailableError("503")
    assert is_transient(outer)
    assert not is_transient(CredentialsError("expired"))
    assert not is_transient(FileNotFoundError("gone"))
    assert not is_transient(None)

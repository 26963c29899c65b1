"""Fixtures of the tests of decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from support import payloads
from tubelet.video import process


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Children started from here on run a payload where a file would take them over."""

    def start(name: str, layers: Iterable[str] = payloads.LAYERS, folder: str = "/nonexistent") -> None:
        monkeypatch.setattr(process, "_ENTRY", payloads.entry(name, layers, folder))
        monkeypatch.setattr(process, "_said_lacking", set())

    return start

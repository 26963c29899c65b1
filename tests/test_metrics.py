"""The share of the time that a worker works."""

from __future__ import annotations

import time

import pytest
from tubelet import metrics


def test_share_counts_work_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    busy = metrics.Utilisation("some", shown=False)
    with busy.working():
        now_s += 3
        with busy.waiting():
            now_s += 6
        now_s += 1
        assert busy.share() == pytest.approx(0.4)
        now_s += 5  # still at work when it is looked at again
        assert busy.share() == pytest.approx(1.0)
    now_s += 5
    assert busy.share() == 0.0


def test_nothing_is_counted_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_connected", lambda: False)
    monkeypatch.setattr(metrics, "_metric", lambda *args: pytest.fail("a figure without Ray"))
    metrics.count_decoded(1, 1, 1, metrics.Counter({"timeout": 1}))
    metrics.set_queue_length("Stage", 1)

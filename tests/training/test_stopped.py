"""What a run says that was asked to stop, and how ranks are asked to save."""

from __future__ import annotations

import psutil
import pytest
import ray
from tubelet.config import UserError
from tubelet.training.events import _EventQueue
from tubelet.training.fit import _without_ray
from tubelet.training.local_ray import LocalRay, LocalRayError

LOST = ray.exceptions.RaySystemError("the node of the queue is gone\nand more lines")


def test_what_failed_after_a_signal_is_named_where_ray_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalRay()
    monkeypatch.setattr(local, "_servers", [])
    said = str(_without_ray(LOST, local, ["SIGTERM"], 40))
    assert said.startswith("stopped by SIGTERM at step 40 (Ray failed, too: ")
    assert "the node of the queue is gone" in said
    assert "more lines" not in said
    assert _without_ray(LOST, local, [], 40) is LOST
    # A signal to the whole group of processes ends a local Ray, too.
    monkeypatch.setattr(local, "_servers", [psutil.Process()])
    said = str(_without_ray(LOST, local, ["SIGTERM"], 40))
    assert said.startswith("stopped by SIGTERM at step 40 (Ray was stopped, too; ")
    assert isinstance(_without_ray(LocalRayError("gone"), local, [], 40), UserError)


def test_ranks_are_asked_to_save_until_they_have_or_start_anew() -> None:
    queue = _EventQueue()
    assert queue.put({"kind": "step"}) == ("", False)
    for answer in ("saved", "start"):
        queue.request_save()
        assert queue.put({"kind": "step"}) == ("", True)
        assert queue.is_saving()
        queue.put({"kind": answer})
        assert not queue.is_saving()
    assert [record["kind"] for record in queue.drain()] == ["step", "step", "step", "start"]

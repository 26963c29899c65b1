"""What a long job says of itself while it runs."""

from __future__ import annotations

import pytest
from tubelet import progress
from tubelet.labelling.report import million_more
from tubelet.progress import ProgressLine, duration
from tubelet.training.progress import Progress, restart_line


def test_rate_and_time_left_are_of_the_last_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job whose nodes came after an hour is as fast as it is now, not as it was on the average."""
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    line = ProgressLine("label", 100_000, "videos")
    for _ in range(3600):
        clock[0] += 1
        line.advance(1)
    assert line.rate == pytest.approx(1, rel=0.02)
    for _ in range(70):
        clock[0] += 1
        line.advance(100)
    assert line.rate == pytest.approx(100, rel=0.02)
    assert "15 min left" in capsys.readouterr().err.splitlines()[-1]


def test_a_start_set_back_counts_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that a restart repeats are no speed, and neither is a start at step 5,000."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    line = ProgressLine("train", 10_000, "steps")
    line.restart(5_000)
    clock[0] += 10
    line.advance(20)
    assert line.rate == pytest.approx(2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "7 s"), (99.7, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min"), (190_800, "2 d 5 h")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_lost_node_is_told_with_where_the_run_goes_on() -> None:
    before = Progress(step=129, nodes=3, world=2)
    assert restart_line(before, 2, 1, 117) == "node lost at step 129; going on at step 117 with 1 rank"
    assert restart_line(before, 4, 3, 129) == "node joined at step 129; going on at step 129 with 3 ranks"
    assert restart_line(before, 3, 2, 120) == "rank lost at step 129; going on at step 120 with 2 ranks"


def test_what_a_million_more_videos_would_take() -> None:
    costs = {"cost.core_s_per_video": 0.36, "cost.gpu_s_per_video": 0.018}
    assert million_more(costs) == {"core_hours": 100.0, "gpu_hours": 5.0}

"""Sampling: from frames that exist, by presentation time, whatever the video."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tubelet.video import AtFps, Clock, Dense, Frames, Linspace, Middle, Random, Times, Uniform, test_views
from tubelet.video.sampling import TIME_TOLERANCE_S

gaps = st.lists(st.floats(1e-3, 30.0), min_size=1, max_size=200)
units = st.floats(0, 1, exclude_max=True)
offsets = st.one_of(
    st.just(Middle()),
    units.map(Random),
    st.integers(1, 12).flatmap(lambda n: st.integers(0, n - 1).map(lambda k: Linspace(k, n))),
)
counts = st.integers(1, 64)


def clock_of(spacing: list[float]) -> Clock:
    times_s = np.concatenate([[0.0], np.cumsum(spacing[:-1])])
    return Clock(times_s, float(times_s[-1] + spacing[-1]))


rules = st.one_of(
    st.builds(Uniform, counts, offsets),
    st.builds(Dense, counts, st.integers(1, 16), offsets),
    st.builds(AtFps, counts, st.floats(0.05, 240.0), offsets),
    st.builds(Times, st.lists(st.floats(-10, 1e4), min_size=1, max_size=40).map(tuple)),
)


@given(gaps, rules)
def test_every_rule_takes_frames_that_exist(spacing, rule):
    clock = clock_of(spacing)
    picked = rule.pick(clock)
    assert picked.dtype == np.int64
    assert len(picked) == (len(rule.times_s) if isinstance(rule, Times) else rule.frames)
    assert picked.min() >= 0
    assert picked.max() < len(clock)


@given(gaps, counts, offsets)
def test_uniform_is_sorted_and_takes_one_from_each_segment(spacing, frames, offset):
    clock = clock_of(spacing)
    picked = Uniform(frames, offset).pick(clock)
    n = len(clock)
    i = np.arange(frames)
    assert (np.diff(picked) >= 0).all()
    assert (picked >= i * n // frames).all()
    assert (picked <= np.maximum(-(-(i + 1) * n // frames) - 1, i * n // frames)).all()


@given(st.integers(1, 500), counts, st.integers(1, 16), offsets)
def test_dense_keeps_its_stride_or_loops_from_the_first_frame(length, frames, stride, offset):
    clock = Clock(np.arange(length) / 30, length / 30)
    picked = Dense(frames, stride, offset).pick(clock)
    assert (np.diff(picked) % length == stride % length).all()
    if length >= frames * stride:
        assert (np.diff(picked) == stride).all()
    elif not isinstance(offset, Random):
        assert picked[0] == 0


@given(gaps, st.integers(1, 64), st.floats(0.1, 120.0), offsets)
@example([1.0, 1.0], 2, 1.0, Random(0.9999999999999998))
def test_by_time_takes_the_last_frame_presented_at_or_before(spacing, frames, fps, offset):
    clock = clock_of(spacing)
    picked = AtFps(frames, fps, offset).pick(clock)
    if frames / fps > clock.end_s:
        return  # looped
    shown = clock.times_s[picked]
    asked = shown[0] + (np.arange(frames) / fps)
    assert (np.diff(picked) >= 0).all()
    following = np.append(clock.times_s, np.inf)[picked + 1]
    assert (shown <= asked + spacing_slack(clock, picked[0])).all()
    assert (following > asked - 2 * TIME_TOLERANCE_S).all()


def spacing_slack(clock: Clock, first: int) -> float:
    """The clip begins somewhere while its first frame is shown, so at most this much after its
    presentation.
    """
    ends = np.append(clock.times_s, clock.end_s)
    return float(ends[first + 1] - ends[first]) + 2 * TIME_TOLERANCE_S


@given(gaps, st.floats(-5, 2000), st.floats(0, 500), rules)
def test_a_window_bounds_what_is_taken(spacing, begin_s, length_s, rule):
    clock = clock_of(spacing)
    window = clock.window(begin_s, begin_s + length_s)
    picked = rule.pick(window) + window.first
    inside = (clock.times_s >= begin_s - 1e-5) & (clock.times_s < begin_s + length_s + 1e-5)
    if len(window) > 1:
        assert inside[picked].all()
    else:
        assert len(set(picked.tolist())) == 1


@given(gaps, st.integers(1, 8), st.integers(1, 5), st.integers(1, 32), st.integers(1, 8))
def test_views_are_clips_times_crops(spacing, temporal, spatial, frames, stride):
    views = test_views(frames, stride, temporal, spatial, 36, 32)
    assert len(views) == temporal * spatial
    starts = [view.time.pick(clock_of(spacing))[0] for view in views]
    if len(spacing) >= frames * stride:
        assert starts == sorted(starts)
    assert [view.space for view in views[:spatial]] == [view.space for view in views[-spatial:]]


def test_frames_are_taken_as_given_and_must_exist():
    clock = clock_of([0.1] * 5)
    assert Frames((4, 0, 4)).pick(clock).tolist() == [4, 0, 4]
    with pytest.raises(ValueError, match="frame 5 asked for, but there are 5 frames"):
        Frames((5,)).pick(clock)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(0),
        lambda: Dense(8, 0),
        lambda: AtFps(8, 0.0),
        lambda: Frames((-1,)),
        lambda: Frames(()),
        lambda: Times((float("nan"),)),
        lambda: Random(1.0),
        lambda: Linspace(3, 3),
        lambda: test_views(8, 2, 0, 3, 36, 32),
    ],
)
def test_senseless_rules_are_refused_where_they_are_made(make):
    with pytest.raises(ValueError, match=r"."):
        make()

"""Frames in another order, or one of them only."""

from __future__ import annotations

import numpy as np
import pytest
from tubelet.clips import ClipSpec
from tubelet.clips.tubelets import clip_to_tubelets, tubelets_to_clip
from tubelet.evaluation.ablation import ablate

SPEC = ClipSpec(frames=6, stride=None, size=8, tubelet=(2, 4, 4))


@pytest.fixture
def clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 6, 8, 8, 3), np.uint8)


def _ablated(clips: np.ndarray, kind: str, key: str = "a", seed: int = 0) -> np.ndarray:
    tubelets = np.stack([clip_to_tubelets(clip, SPEC.tubelet) for clip in clips])
    changed = ablate(tubelets, key, kind, SPEC, seed)  # type: ignore[arg-type]
    return np.stack([tubelets_to_clip(tokens, 6, 8, 8, SPEC.tubelet) for tokens in changed])


def _order(clip: np.ndarray, changed: np.ndarray) -> list[int]:
    """Which frame of ``clip`` each frame of ``changed`` is."""
    return [int(np.flatnonzero([np.array_equal(f, g) for g in clip])[0]) for f in changed]


def test_shuffled_clips_have_the_same_frames_in_another_order(clips: np.ndarray) -> None:
    orders = [_order(*pair) for pair in zip(clips, _ablated(clips, "shuffle"), strict=True)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders != [list(range(6))] * 3


def test_one_frame_stands_still(clips: np.ndarray) -> None:
    orders = [_order(*pair) for pair in zip(clips, _ablated(clips, "one-frame"), strict=True)]
    assert all(len(set(order)) == 1 for order in orders)


def test_the_draw_depends_on_key_and_seed_only(clips: np.ndarray) -> None:
    first = _ablated(clips, "shuffle")
    assert np.array_equal(first, _ablated(clips, "shuffle"))
    assert not np.array_equal(first, _ablated(clips, "shuffle", key="b"))
    assert not np.array_equal(first, _ablated(clips, "shuffle", seed=1))
    assert np.array_equal(_ablated(clips, "none"), clips)

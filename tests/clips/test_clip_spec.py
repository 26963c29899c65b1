"""Clip settings are checked where they are made; tubelets have the model's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tubelet.clips import ClipSpec, TrainCrop, clip_to_tubelets, generator, tubelets_to_clip
from tubelet.config import UserError, load_settings
from tubelet.video import AtFps, Dense, JitterCrop, ResizedCrop, ShortSide, Uniform
from tubelet.vivit import clip_to_tubelets as torch_tubelets


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, "does not divide into tubelets.*change frames, size or tubelet"),
        ({"frames": 7}, "does not divide"),
        ({"fps": 8}, "stride and fps exclude each other"),
        ({"short_side": 200}, "smaller than size 224"),
        ({"frames": 0}, "frames"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(ClipSpec, settings)


def test_the_papers_clip() -> None:
    spec = ClipSpec()
    assert (spec.tokens, spec.token_bytes, spec.resize_side) == (16 * 14 * 14, 2 * 16 * 16 * 3, 256)
    assert spec.sampling == "32x2@224"


def test_interpolation_is_part_of_a_clip_and_models_of_before_keep_their_name() -> None:
    assert "interpolation" not in ClipSpec().model_dump(mode="json")
    assert ClipSpec().sampling_of((1, 1)) == "32x2@224 of 256 views=1x1"
    bicubic = ClipSpec(interpolation="bicubic")
    assert ClipSpec.model_validate(bicubic.model_dump(mode="json")) == bicubic
    assert bicubic.sampling_of((1, 1)) == "32x2@224 of 256 bicubic views=1x1"
    views = [*bicubic.test_views(2, 3), TrainCrop().view(bicubic, generator(0, 0, "key"))]
    assert {view.interpolation for view in views} == {"bicubic"}
    assert {view.interpolation for view in ClipSpec().test_views(2, 3)} == {"bilinear"}


def test_views_vary_clips_slowest() -> None:
    views = ClipSpec(frames=8, stride=2, size=32).test_views(4, 3)
    assert len(views) == 12
    assert [views[i].time for i in (0, 1, 2)] == [views[0].time] * 3
    assert views[3].time != views[0].time
    assert [view.space.position for view in views[:3]] == [0.0, 0.5, 1.0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({"stride": 2}, Dense), ({"stride": None}, Uniform), ({"stride": None, "fps": 5.0}, AtFps)],
)
def test_sampling_of_training_and_test_agree_in_kind(settings: dict[str, object], rule: type) -> None:
    spec = load_settings(ClipSpec, {"frames": 8, "size": 32, **settings})
    assert isinstance(spec.random_time(0.3), rule)
    assert all(isinstance(view.time, rule) for view in spec.test_views(2, 1))


@pytest.mark.parametrize(
    ("crop", "rule"), [("jitter", JitterCrop), ("resized", ResizedCrop), ("centre", ShortSide)]
)
def test_training_view_is_a_function_of_its_names(crop: str, rule: type) -> None:
    spec, settings = ClipSpec(frames=8, size=32), load_settings(TrainCrop, {"crop": crop})
    first, again, other = (settings.view(spec, generator(0, epoch, "key")) for epoch in (1, 1, 2))
    assert isinstance(first.space, rule)
    assert first == again
    assert first != other
    # The place in time stays when only the way of cropping changes.
    assert first.time == TrainCrop().view(spec, generator(0, 1, "key")).time


def test_shift_holds_the_crop_to_the_centre() -> None:
    spec = ClipSpec(frames=8, size=32, short_side=96)
    names = [("key", i) for i in range(200)]

    def tops(shift: float) -> list[int]:
        crop = TrainCrop(shift=shift, scale_jitter=(1.0, 1.0))
        places = [crop.view(spec, generator(0, *name)).space.place(96, 96) for name in names]
        return [place.crop.top for place in places]

    assert set(tops(0)) == {32}
    assert 29 <= min(tops(0.1)) < 32 < max(tops(0.1)) <= 35
    assert min(tops(1)) <= 1
    assert max(tops(1)) >= 63


def test_flip_has_its_probability() -> None:
    spec, crop = ClipSpec(frames=8, size=32), TrainCrop(flip=0.25)
    flips = [crop.view(spec, generator(0, 0, str(i))).space.flip for i in range(2000)]  # type: ignore[union-attr]
    assert 0.21 < np.mean(flips) < 0.29


def test_tubelets_have_the_models_order() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    tubelets = clip_to_tubelets(clip, (2, 16, 16))
    assert tubelets.shape == (2 * 2 * 3, 2 * 16 * 16 * 3)
    assert np.array_equal(tubelets[0].reshape(2, 16, 16, 3), clip[:2, :16, :16])
    assert np.array_equal(tubelets[1].reshape(2, 16, 16, 3), clip[:2, :16, 16:32])
    assert np.array_equal(tubelets[6].reshape(2, 16, 16, 3), clip[2:, :16, :16])
    assert np.array_equal(tubelets, torch_tubelets(torch.from_numpy(clip)[None], (2, 16, 16))[0].numpy())
    assert np.array_equal(tubelets_to_clip(tubelets, 4, 32, 48, (2, 16, 16)), clip)

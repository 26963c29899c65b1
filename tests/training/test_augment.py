"""Colour augmentation: one change a clip, a function of its names, each operation as stated."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from tubelet.training import augment
from tubelet.training.augment import OPERATIONS, ClipAugment
from tubelet.training.recipe import AugmentSettings, RandAugmentSettings
from tubelet.vivit import ViViTConfig, clip_to_tubelets, tubelets_to_clip

CONFIG = ViViTConfig.preset("tiny-8x2-model1", classes=3)
ALL = AugmentSettings(colour=0.5, grey=0.3, randaugment=RandAugmentSettings(layers=2, magnitude=15))


def clips(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, CONFIG.frames, CONFIG.height, CONFIG.width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def tubelets(values: torch.Tensor) -> torch.Tensor:
    return clip_to_tubelets(values, CONFIG.tubelet)


def back(values: torch.Tensor) -> torch.Tensor:
    return tubelets_to_clip(values, CONFIG.grid, CONFIG.tubelet)


SAMPLES = [(epoch, f"key{i}", 0) for epoch in range(2) for i in range(8)]


def test_a_clip_s_change_does_not_depend_on_its_batch() -> None:
    change = ClipAugment(ALL, CONFIG, seed=3)
    x = tubelets(clips(16))
    together = change(x, SAMPLES)
    alone = torch.cat([change(x[i : i + 1], SAMPLES[i : i + 1]) for i in range(16)])
    shuffled = change(x.flip(0), SAMPLES[::-1]).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, shuffled)
    assert not torch.equal(together, ClipAugment(ALL, CONFIG, seed=4)(x, SAMPLES))


def test_draws_differ_by_epoch_key_and_repeat_and_use_every_operation() -> None:
    change = ClipAugment(ALL, CONFIG, seed=0)
    draws = {(e, k, r): change.draw(e, f"k{k}", r) for e in range(5) for k in range(40) for r in range(2)}
    assert len({draw.operations for draw in draws.values()}) == len(draws)
    used = [name for draw in draws.values() for name, _, _ in draw.operations]
    counts = np.array([used.count(name) for name in OPERATIONS])
    assert len(OPERATIONS) == 12
    assert (abs(counts - len(used) / 12) < 5 * np.sqrt(len(used) / 12)).all()
    coloured = np.mean([draw.colour is not None for draw in draws.values()])
    assert coloured == pytest.approx(0.5, abs=0.1)


def test_still_clips_stay_still() -> None:
    still = clips(16)[:, :1].expand(-1, CONFIG.frames, -1, -1, -1).contiguous()
    out = back(ClipAugment(ALL, CONFIG, seed=1)(tubelets(still), SAMPLES))
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert not torch.equal(out, still)


def test_off_means_untouched() -> None:
    change = ClipAugment(AugmentSettings(), CONFIG, seed=0)
    x = tubelets(clips(2))
    assert not change.active
    assert change(x, ()) is x


def operation(name: str, x: torch.Tensor, magnitude: float = 15) -> torch.Tensor:
    function = {"cutout": lambda c, m: augment._cutout(c, m, [(0.5, 0.5)] * len(c))} | augment._FUNCTIONS
    out = function[name](x, magnitude)
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    return out


def test_invert_posterize_solarize_by_hand() -> None:
    x = torch.tensor([0, 1, 100, 127, 128, 200, 255, 255, 3], dtype=torch.uint8).view(1, 1, 1, 3, 3)
    assert operation("invert", x).flatten().tolist() == [255, 254, 155, 128, 127, 55, 0, 0, 252]
    assert operation("posterize", x).flatten().tolist() == [0, 0, 100, 124, 128, 200, 252, 252, 0]  # 6 bits
    assert torch.equal(operation("posterize", x, 20), x)  # 8 bits
    assert operation("solarize", x).flatten().tolist() == [0, 1, 100, 127, 127, 55, 0, 0, 3]
    assert torch.equal(operation("solarize", x, 20), 255 - x)
    assert operation("solarize_add", x).flatten().tolist() == [165, 166, 255, 255, 128, 200, 255, 255, 168]


def test_autocontrast_takes_its_range_from_the_whole_clip() -> None:
    x = torch.full((1, 2, 2, 2, 3), 100, dtype=torch.uint8)
    x[0, 0, 0, 0], x[0, 1, 1, 1] = 50, 150  # darkest in one frame, brightest in the other
    out = operation("autocontrast", x)
    assert sorted(set(out.flatten().tolist())) == [0, 127, 255]
    flat = torch.full((1, 2, 2, 2, 3), 9, dtype=torch.uint8)
    assert torch.equal(operation("autocontrast", flat), flat)


def test_equalize_flattens_the_histogram_of_the_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    dark = (torch.rand(1, 8, 32, 32, 3, generator=generator) ** 3 * 200).to(torch.uint8)
    out = operation("equalize", dark).float()
    quantiles = torch.quantile(out.flatten(), torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([63.75, 127.5, 191.25]), rtol=0, atol=6)
    flat = torch.full((1, 2, 2, 2, 3), 9, dtype=torch.uint8)
    assert torch.equal(operation("equalize", flat), flat)


def test_brightness_colour_and_contrast_move_away_from_black_grey_and_mean() -> None:
    x = clips(2)
    factor = 15 / 10 * 1.8 + 0.1
    bright = (x.float() * factor).clamp(max=255).to(torch.uint8)
    assert torch.equal(operation("brightness", x), bright)
    grey = x.float()[..., :1].expand_as(x).to(torch.uint8)
    assert torch.equal(operation("color", grey), grey)  # what has no colour gets none
    spread = operation("contrast", x, 5).float()
    assert spread.std() == pytest.approx(float(x.float().std()), rel=0.02)  # M=5: factor 1
    assert operation("contrast", x, 0).float().std() < 0.2 * x.float().std()  # M=0: factor 0.1


def test_sharpness_keeps_frames_apart_and_edges() -> None:
    x = torch.full((1, 2, 8, 8, 3), 60, dtype=torch.uint8)
    x[0, 1] = 200
    assert torch.equal(operation("sharpness", x), x)  # nothing to sharpen within either frame
    y = clips(1)
    out = operation("sharpness", y)
    assert torch.equal(out[:, :, 0], y[:, :, 0])
    assert torch.equal(out[:, :, :, -1], y[:, :, :, -1])
    assert not torch.equal(out, y)


def test_cutout_is_one_black_square() -> None:
    x = torch.full((1, 4, 200, 200, 3), 9, dtype=torch.uint8)
    out = operation("cutout", x, 15)
    assert int((out == 0).sum()) == 4 * 121 * 121 * 3
    assert torch.equal(out[:, 0], out[:, 3])


def test_hue_and_saturation_agree_with_colorsys() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 4, 5, 3, generator=generator)
    turned = augment._turn_hue(x, 0.17)
    saturated = augment._saturate(x, 1.35)
    for rgb, hue, saturation in zip(
        x.view(-1, 3).tolist(), turned.view(-1, 3).tolist(), saturated.view(-1, 3).tolist(), strict=True
    ):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        assert hue == pytest.approx(colorsys.hsv_to_rgb((h + 0.17) % 1, s, v), abs=1e-5)
        assert saturation == pytest.approx(colorsys.hsv_to_rgb(h, min(1, s * 1.35), v), abs=1e-5)


def test_jitter_contrast_is_about_the_mean_of_each_frame_and_channel() -> None:
    x = torch.rand(3, 6, 6, 3, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3
    out = augment.jitter(x, 0.0, 1.0, 0.5, 0.0)
    torch.testing.assert_close(out.mean((1, 2)), x.mean((1, 2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std((1, 2)), x.std((1, 2)) * 0.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(augment.jitter(x, 0.1, 1.0, 1.0, 0.0), x + 0.1, rtol=0, atol=1e-5)


def test_grey_clips_have_no_colour() -> None:
    change = ClipAugment(AugmentSettings(grey=1.0), CONFIG, seed=0)
    out = back(change(tubelets(clips(2)), SAMPLES[:2]))
    assert torch.equal(out, out[..., :1].expand_as(out))

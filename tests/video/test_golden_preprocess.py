"""Clips, crops and scaling against the paper's own reader (DMVR) and Hugging Face's image processor.

Indices and crops are equal. Pixels differ by the resize: the reference's bilinear takes no average when it
scales down and cuts off fractions, Hugging Face's rounds; swscale averages and rounds, in YUV when the
picture is YUV. The bounds below are what was measured on the goldens' frames (random noise, the worst case
for a resize), in grey levels of 255.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support import SHARED
from tubelet.video import Box, Clock, Dense, JitterCrop, Linspace, Middle, ShortSide, Uniform, View
from tubelet.video import test_views as views_of
from tubelet.video.picture import Painter, Shape

KINDS = ("dmvr_preprocess", "hf_preprocess")


def cases() -> list[Path]:
    """Every golden of these kinds: those of the repo, those beside the checkout, those of TUBELET_GOLDEN."""
    folders = [Path(__file__).parents[1] / "golden", SHARED / "golden" / "given"]
    if os.environ.get("TUBELET_GOLDEN"):
        folders.append(Path(os.environ["TUBELET_GOLDEN"]))
    return [path for folder in folders for path in sorted(folder.rglob("*preprocess*.npz"))]


def scaled(frame: np.ndarray, rule: object) -> np.ndarray:
    source = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    shape = Shape.of(source, 1)
    placed = rule.place(shape.height, shape.width)
    out = np.empty((*placed.size, 3), np.uint8)
    Painter().paint(source, shape, [placed], [out])
    return out


@pytest.mark.parametrize("path", cases(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path: Path) -> None:
    with np.load(path) as data:
        config = json.loads(str(data["config"]))
        if config["kind"] == "dmvr_preprocess":
            check_clips(data, config)
            check_dmvr_pictures(data, config)
        elif config["kind"] == "hf_preprocess":
            check_huggingface(data, config)
        else:
            pytest.fail(f"unknown kind {config['kind']}")


def check_clips(data, config) -> None:
    for number, case in enumerate(config["cases"]):
        length, frames, stride = case["video_length"], case["num_frames"], case["stride"]
        clock = Clock(np.arange(length) / 25, length / 25)
        n = case["num_clips"]
        ours = np.stack([Dense(frames, stride, Linspace(k, n)).pick(clock) for k in range(n)])
        np.testing.assert_array_equal(ours, data[f"linspace_{number}"])
        np.testing.assert_array_equal(Dense(frames, stride, Middle()).pick(clock), data[f"middle_{number}"])


def check_dmvr_pictures(data, config) -> None:
    frames, side, crop = data["frames"], config["resize"], config["crop"]
    resized = data[f"resize_smallest_{side}"]
    ours = np.stack([scaled(frame, ShortSide(side)) for frame in frames])
    assert ours.shape == resized.shape
    assert np.abs(ours.astype(int) - resized).mean() < 12
    # Crops, of the reference's own resized frames: exactly equal.
    central = [scaled(frame, ShortSide(side, crop)) for frame in resized]
    np.testing.assert_array_equal(np.stack(central), data[f"central_crop_{crop}"])
    for view, expected in zip(views_of(1, 1, 1, 3, side, crop), data[f"three_crops_{crop}"], strict=True):
        np.testing.assert_array_equal(np.stack([scaled(frame, view.space) for frame in resized]), expected)
    normalised = data["normalized_central"]
    np.testing.assert_allclose(np.stack(central).astype(np.float32) * (2 / 255) - 1, normalised, atol=1e-6)
    for name in data.files:
        if name.startswith("scale_jitter_h"):
            check_jitter_size(name, resized, data[name])


def check_jitter_size(name: str, resized: np.ndarray, expected: np.ndarray) -> None:
    factors = [float(part[1:]) for part in name.removeprefix("scale_jitter_").split("_")]
    height, width = resized.shape[1:3]
    # The range [0.5, 1.5) and these numbers give just these two factors.
    u = (factors[0] - 0.5, factors[1] - 0.5, 0.0, 0.0)
    placed = JitterCrop(min(height, width), 8, (0.5, 1.5), u).place(height, width)
    assert (placed.height, placed.width) == expected.shape[1:3]


def check_huggingface(data, config) -> None:
    frames, side, crop = data["frames"], config["size"], config["crop"]
    ours = np.stack([scaled(frame, ShortSide(side, crop)) for frame in frames])
    expected = data["pixel_values_normalize_False"][0].transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape
    levels = np.abs(ours - (expected + 1) * 127.5)
    assert levels.mean() < 1
    height, width = frames.shape[1:3]
    # The short side becomes `side`, the long one keeps the shape, cut off to whole pixels.
    tall, wide = (int(side * length / min(height, width)) for length in (height, width))
    assert ShortSide(side, crop).place(height, width).crop == Box(
        (tall - crop) // 2, (wide - crop) // 2, crop, crop
    )


def test_bicubic_is_pils() -> None:
    """As image models were trained: antialiased, a cubic of four neighbours. Noise is the worst case."""
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    wanted = Image.fromarray(frame).resize((64, 48), Image.Resampling.BICUBIC)
    off = {}
    for how in ("bilinear", "bicubic"):
        picture = scaled(frame, View(Uniform(1), ShortSide(48), how))
        off[how] = float(np.abs(picture.astype(int) - np.asarray(wanted)).mean())
    assert off["bicubic"] < 3 < 5 < off["bilinear"]

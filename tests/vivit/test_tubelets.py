"""Tubelets hold what the original's convolution kernel sees, in its order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.vivit import randomised
from tubelet.vivit import (
    ViViT,
    ViViTConfig,
    clip_to_tubelets,
    sample_frames_uniformly,
    to_scenic,
    tubelets_to_clip,
)

sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@given(grid=sizes, tubelet=sizes, rest=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)))
def test_there_and_back(
    grid: tuple[int, int, int], tubelet: tuple[int, int, int], rest: tuple[int, int, int]
) -> None:
    """Whole tubelets come back; a remainder smaller than a tubelet is dropped at the end."""
    whole = [n * size for n, size in zip(grid, tubelet, strict=True)]
    shape = [n + min(more, size - 1) for n, more, size in zip(whole, rest, tubelet, strict=True)]
    clip = torch.arange(2 * int(np.prod(shape)) * 3).reshape(2, *shape, 3)
    tubelets = clip_to_tubelets(clip, tubelet)
    assert torch.equal(tubelets_to_clip(tubelets, grid, tubelet), clip[:, : whole[0], : whole[1], : whole[2]])
    assert np.array_equal(clip_to_tubelets(clip.numpy(), tubelet), tubelets.numpy())


def test_embedding_is_the_convolution() -> None:
    config = ViViTConfig.preset("tiny-8x2-model1", classes=2, height=24, tubelet=(2, 8, 4))
    model = randomised(ViViT(config))
    clip = torch.randn(2, 8, 24, 32, 3)
    kernel = to_scenic(model)["embedding/kernel"].permute(4, 3, 0, 1, 2)
    wanted = F.conv3d(clip.permute(0, 4, 1, 2, 3), kernel, model.embedding.bias, stride=(2, 8, 4))
    torch.testing.assert_close(model.embed(clip), wanted.flatten(2).transpose(1, 2), atol=1e-4, rtol=0)


def test_tubelet_larger_than_the_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than the clip"):
        clip_to_tubelets(torch.zeros(4, 8, 8, 3), (5, 8, 8))


def test_wrong_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="no grid"):
        tubelets_to_clip(torch.zeros(7, 6), (2, 2, 2), (1, 1, 2))


def test_uniform_sampling_picks_the_originals_frames() -> None:
    every_other = [2, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21, 23, 24, 26, 28, 30]
    assert sample_frames_uniformly(32, 16) == every_other
    assert sample_frames_uniformly(8, 4) == [2, 3, 5, 6]
    assert sample_frames_uniformly(4, 4) == sample_frames_uniformly(4, 9) == [0, 1, 2, 3]


@given(frames=st.integers(1, 64), sampled=st.integers(1, 64))
def test_uniform_sampling_picks_exactly_as_many_as_asked(frames: int, sampled: int) -> None:
    picked = sample_frames_uniformly(frames, sampled)
    assert len(picked) == min(frames, sampled)
    assert picked == sorted(set(picked))
    assert 0 <= picked[0] <= picked[-1] < frames

"""Clips to tubelets and back, and the frames that uniform sampling embeds.

Token order is time, row, column; values inside a tubelet lie in the order (t, h, w, channel), which is that
of the original's convolution kernel `(t, h, w, c, d)`, so the embedding is one matrix product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    import numpy as np

Array = TypeVar("Array", torch.Tensor, "np.ndarray[Any, Any]")


def clip_to_tubelets(clip: Array, tubelet: tuple[int, int, int]) -> Array:
    """`(…, T, H, W, C)` to `(…, tokens, t·h·w·C)`, any dtype; remainders at the end of an axis are dropped.

    Raises:
        ValueError: A tubelet is larger than the clip.
    """
    t, h, w = tubelet
    *lead, T, H, W, C = clip.shape
    n_t, n_h, n_w = T // t, H // h, W // w
    if not n_t * n_h * n_w:
        raise ValueError(f"tubelet={tubelet}: larger than the clip of {T} frames of {H}x{W}")
    whole = clip[..., : n_t * t, : n_h * h, : n_w * w, :]
    split = whole.reshape(*lead, n_t, t, n_h, h, n_w, w, C)
    return _permute_last(split, (0, 2, 4, 1, 3, 5, 6)).reshape(*lead, n_t * n_h * n_w, t * h * w * C)


def tubelets_to_clip(tubelets: Array, grid: tuple[int, int, int], tubelet: tuple[int, int, int]) -> Array:
    """`(…, tokens, t·h·w·C)` to `(…, T, H, W, C)`; `grid` holds the tokens along time, height and width."""
    t, h, w = tubelet
    n_t, n_h, n_w = grid
    *lead, tokens, values = tubelets.shape
    channels, rest = divmod(values, t * h * w)
    if tokens != n_t * n_h * n_w or rest or not channels:
        raise ValueError(f"{tokens} tokens of {values} values are no grid of {grid} tubelets of {tubelet}")
    split = tubelets.reshape(*lead, n_t, n_h, n_w, t, h, w, channels)
    return _permute_last(split, (0, 3, 1, 4, 2, 5, 6)).reshape(*lead, n_t * t, n_h * h, n_w * w, channels)


def sample_frames_uniformly(frames: int, sampled: int) -> list[int]:
    """Indices of `sampled` of `frames` frames, as the original's uniform frame sampling picks them.

    Frame i (from 1) is i * T / (n + 1), rounded half to even; all frames where there are no more than asked.
    The original's floating-point range yields n + 1 frames for some pairs; this always yields n.
    """
    if sampled >= frames:
        return list(range(frames))
    step = frames / (sampled + 1)
    return [min(round(i * step), frames - 1) for i in range(1, sampled + 1)]


def _permute_last(array: Array, order: tuple[int, ...]) -> Array:
    leading: int = array.ndim - len(order)
    axes = (*range(leading), *(leading + axis for axis in order))
    if isinstance(array, torch.Tensor):
        return array.permute(axes)
    transposed: np.ndarray[Any, Any] = array.transpose(axes)
    return transposed

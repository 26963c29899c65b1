"""Clips to tubelets with numpy, inside the decode workers (``tubelet.vivit`` has the same for torch).

A tubelet is a block of ``t x h x w`` pixels (ViViT, arXiv 2103.15691, section 3.2). Tokens are ordered by
time, then row, then column; the numbers inside one token by t, h, w, channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Uint8 = npt.NDArray[np.uint8]


def token_shape(
    frames: int, height: int, width: int, tubelet: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    """Tokens along time, height and width, and the bytes of one token.

    Raises:
        ValueError: the clip does not divide into whole tubelets.
    """
    t, h, w = tubelet
    if frames % t or height % h or width % w:
        raise ValueError(f"a clip of {frames}x{height}x{width} does not divide into tubelets of {t}x{h}x{w}")
    return frames // t, height // h, width // w, t * h * w * 3


def write_tubelets(clip: Uint8, tubelet: tuple[int, int, int], out: Uint8) -> None:
    """Write ``clip``, uint8 ``(T, H, W, 3)``, into ``out``, uint8 ``(tokens, t*h*w*3)``, in one copy."""
    frames, height, width, _ = clip.shape
    t, h, w = tubelet
    nt, nh, nw, _ = token_shape(frames, height, width, tubelet)
    blocks = clip.reshape(nt, t, nh, h, nw, w, 3)
    out.reshape(nt, nh, nw, t, h, w, 3)[:] = blocks.transpose(0, 2, 4, 1, 3, 5, 6)


def clip_to_tubelets(clip: Uint8, tubelet: tuple[int, int, int]) -> Uint8:
    """uint8 ``(T, H, W, 3)`` to uint8 ``(tokens, t*h*w*3)``.

    Raises:
        ValueError: the clip does not divide into whole tubelets.
    """
    frames, height, width, _ = clip.shape
    nt, nh, nw, size = token_shape(frames, height, width, tubelet)
    out = np.empty((nt * nh * nw, size), np.uint8)
    write_tubelets(clip, tubelet, out)
    return out


def tubelets_to_clip(
    tubelets: Uint8, frames: int, height: int, width: int, tubelet: tuple[int, int, int]
) -> Uint8:
    """The inverse of :func:`clip_to_tubelets`: uint8 ``(tokens, t*h*w*3)`` to ``(T, H, W, 3)``."""
    nt, nh, nw, _ = token_shape(frames, height, width, tubelet)
    t, h, w = tubelet
    blocks = tubelets.reshape(nt, nh, nw, t, h, w, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 2, 5, 6)).reshape(frames, height, width, 3)

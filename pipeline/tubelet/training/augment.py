"""Colour augmentation of whole clips, batched on the device, on the uint8 tubelets that decoding delivers.

Cropping, scaling and mirroring happen while decoding (:class:`tubelet.clips.TrainCrop`); here is what
changes colours: RandAugment, colour jitter, greyscale. All frames of a clip get the same change, and what a
clip gets depends on (seed, epoch, key) only, never on its neighbours in the batch.

RandAugment follows the paper's code (eleven operations and "nothing", drawn uniformly; statistics over the
whole clip), with these differences, where that code does not do what it means to:

- Contrast blends with the clip's mean grey; there, an error makes the mean white for any real clip.
- Sharpness filters each frame; there, the frames are stacked to one tall picture and bleed into each other.
- Solarize above magnitude 10: its threshold ``M/10 * 256`` exceeds a byte and wraps (15 gives 128, 20 gives
  0: always inverted). That is what the published recipes trained with, so it is kept, on purpose.

No maintained library does this clip by clip on tubelets without torchvision, hence code of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.clips import generator
from tubelet.training.recipe import AugmentSettings
from tubelet.vivit import ViViTConfig, clip_to_tubelets, tubelets_to_clip

# Weights of red, green and blue in grey (ITU-R BT.601, as TensorFlow's rgb_to_grayscale has them).
GREY = (0.2989, 0.5870, 0.1140)

Sample = tuple[int, str, int]  # epoch, key, and how often the key came before in that epoch


@dataclass(frozen=True)
class Draw:
    """What one clip gets.

    ``operations``: names of RandAugment's, one a layer, each with a place (row, column) in [0, 1) for the
    cutout; ``colour``: brightness, saturation, contrast, hue, or None; ``grey``: whether it turns grey.
    """

    operations: tuple[tuple[str, float, float], ...]
    colour: tuple[float, float, float, float] | None
    grey: bool


class ClipAugment:
    """Applies the colour augmentations of a recipe to a batch of uint8 tubelets."""

    def __init__(self, settings: AugmentSettings, config: ViViTConfig, seed: int) -> None:
        self.settings, self.config, self.seed = settings, config, seed
        self.active = bool(settings.randaugment.layers or settings.colour or settings.grey)

    @torch.no_grad()
    def __call__(self, tubelets: Tensor, samples: Sequence[Sample]) -> Tensor:
        """uint8 ``(B, tokens, t*h*w*3)`` to the same, changed. ``samples`` names the clips."""
        if not self.active:
            return tubelets
        draws = [self.draw(*sample) for sample in samples]
        _, n_h, n_w = self.config.grid
        grid = (tubelets.shape[1] // (n_h * n_w), n_h, n_w)
        clips = tubelets_to_clip(tubelets, grid, self.config.tubelet)
        for layer in range(self.settings.randaugment.layers):
            clips = self._randaugment(clips, [draw.operations[layer] for draw in draws])
        clips = _colour(clips, draws)
        return clip_to_tubelets(clips, self.config.tubelet)

    def draw(self, epoch: int, key: str, repeat: int = 0) -> Draw:
        """The draw of one clip; a function of its names alone."""
        g, s = generator("augment", self.seed, epoch, key, repeat), self.settings
        operations = tuple(
            (OPERATIONS[int(g.integers(len(OPERATIONS)))], float(g.random()), float(g.random()))
            for _ in range(s.randaugment.layers)
        )
        use_colour, use_grey, *u = (float(value) for value in g.random(6))
        colour = (
            _between(u[0], 32 / 255),
            1 + _between(u[1], 0.4),
            1 + _between(u[2], 0.4),
            _between(u[3], 0.2),
        )
        return Draw(operations, colour if use_colour < s.colour else None, use_grey < s.grey)

    def _randaugment(self, clips: Tensor, operations: Sequence[tuple[str, float, float]]) -> Tensor:
        out = clips.clone()
        for name in sorted({operation[0] for operation in operations} - {"identity"}):
            rows = [i for i, operation in enumerate(operations) if operation[0] == name]
            index = torch.tensor(rows, device=clips.device)
            if name == "cutout":
                places = [operations[i][1:] for i in rows]
                out[index] = _cutout(clips[index], self.settings.randaugment.magnitude, places)
            else:
                out[index] = _FUNCTIONS[name](clips[index], self.settings.randaugment.magnitude)
        return out


def _between(u: float, limit: float) -> float:
    return (2 * u - 1) * limit


# ---- RandAugment: uint8 (B, T, H, W, 3) and the magnitude, to uint8


def _autocontrast(clips: Tensor, magnitude: float) -> Tensor:
    """Stretch each channel of each clip to 0..255."""
    low = clips.amin((1, 2, 3), keepdim=True).float()
    high = clips.amax((1, 2, 3), keepdim=True).float()
    scale = torch.where(high > low, 255.0 / (high - low).clamp(min=1), torch.ones_like(low))
    offset = torch.where(high > low, -low * scale, torch.zeros_like(low))
    return _bytes(clips.float() * scale + offset)


def _equalize(clips: Tensor, magnitude: float) -> Tensor:
    """Flatten the histogram of each channel of each clip."""
    B = len(clips)
    pixels = clips.reshape(B, -1, 3).transpose(1, 2).reshape(B * 3, -1).long()
    counts = torch.zeros(B * 3, 256, dtype=torch.long, device=clips.device)
    counts.scatter_add_(1, pixels, torch.ones_like(pixels))
    last = counts.gather(1, pixels.amax(1, keepdim=True))
    step = (pixels.shape[1] - last) // 255
    table = (counts.cumsum(1) + step // 2) // step.clamp(min=1)
    table = F.pad(table[:, :-1], (1, 0)).clamp(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=clips.device))
    flat = table.gather(1, pixels).view(B, 3, -1).transpose(1, 2)
    return flat.reshape(clips.shape).to(torch.uint8)


def _invert(clips: Tensor, magnitude: float) -> Tensor:
    return 255 - clips


def _posterize(clips: Tensor, magnitude: float) -> Tensor:
    """Keep ``M/10 * 4`` bits; magnitudes from 20 keep all."""
    bits = min(8, int(magnitude / 10 * 4))
    mask = 0 if bits == 0 else (0xFF << (8 - bits)) & 0xFF
    return clips & mask


def _solarize(clips: Tensor, magnitude: float) -> Tensor:
    """Invert values from the threshold on; see the note above on thresholds beyond a byte."""
    threshold = int(magnitude / 10 * 256) % 256
    return torch.where(clips < threshold, clips, 255 - clips)


def _solarize_add(clips: Tensor, magnitude: float) -> Tensor:
    """Brighten values below 128."""
    added = (clips.int() + int(magnitude / 10 * 110)).clamp(0, 255).to(torch.uint8)
    return torch.where(clips < 128, added, clips)


def _color(clips: Tensor, magnitude: float) -> Tensor:
    return _blend(_grey(clips.float()).round(), clips, magnitude)


def _contrast(clips: Tensor, magnitude: float) -> Tensor:
    grey = _grey(clips.float()).round()
    return _blend(grey.mean((1, 2, 3, 4), keepdim=True).floor(), clips, magnitude)


def _brightness(clips: Tensor, magnitude: float) -> Tensor:
    return _blend(torch.zeros((), device=clips.device), clips, magnitude)


def _sharpness(clips: Tensor, magnitude: float) -> Tensor:
    """Move away from the smoothed frame (kernel of ones, 5 in the middle, over 13); edges stay."""
    B, T, H, W, _ = clips.shape
    kernel = torch.ones(3, 1, 3, 3, device=clips.device)
    kernel[:, :, 1, 1] = 5.0
    frames = clips.reshape(B * T, H, W, 3).permute(0, 3, 1, 2).float()
    smooth = frames.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(frames, kernel, groups=3) / 13.0).floor()
    return _blend(smooth.permute(0, 2, 3, 1).reshape(clips.shape), clips, magnitude)


def _cutout(clips: Tensor, magnitude: float, places: Sequence[tuple[float, float]]) -> Tensor:
    """Black square of half side ``M/10 * 40`` pixels at one place of all frames, cut off at the edges."""
    _, _, H, W, _ = clips.shape
    half = int(magnitude / 10 * 40)
    centres = torch.tensor([(int(v * H), int(u * W)) for v, u in places], device=clips.device)
    rows = (torch.arange(H, device=clips.device) - centres[:, :1]).abs() <= half
    columns = (torch.arange(W, device=clips.device) - centres[:, 1:]).abs() <= half
    hole = rows[:, :, None] & columns[:, None, :]
    return clips.masked_fill(hole[:, None, :, :, None], 0)


def _blend(away_from: Tensor, clips: Tensor, magnitude: float) -> Tensor:
    """``a + factor * (x - a)``, factor ``M/10 * 1.8 + 0.1``: 1 is the clip itself, more moves on."""
    factor = magnitude / 10 * 1.8 + 0.1
    return _bytes(away_from + factor * (clips.float() - away_from))


def _bytes(x: Tensor) -> Tensor:
    return x.clamp(0, 255).to(torch.uint8)


_FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "solarize_add": _solarize_add,
}
OPERATIONS = (*_FUNCTIONS, "cutout", "identity")


# ---- Colour jitter and grey: as DMVR's color_default_augm


def _colour(clips: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Brightness, saturation, contrast (about the mean of each frame and channel), hue, then grey."""
    jittered = [i for i, draw in enumerate(draws) if draw.colour]
    grey = [i for i, draw in enumerate(draws) if draw.grey]
    if not jittered and not grey:
        return clips
    out = clips.clone()
    for i in jittered:  # one clip at a time: in float32, a batch of them would be gigabytes
        colour = draws[i].colour
        if colour is not None:
            out[i] = _round(jitter(clips[i].float() / 255, *colour))
    for i in grey:
        out[i] = _round(_grey(out[i].float() / 255).expand(out[i].shape))
    return out


def jitter(clip: Tensor, brightness: float, saturation: float, contrast: float, hue: float) -> Tensor:
    """Change the colours of a float clip ``(T, H, W, 3)`` in [0, 1]; ``hue`` is a part of the full circle."""
    x = clip + brightness
    x = _saturate(x, saturation)
    mean = x.mean((1, 2), keepdim=True)
    x = (x - mean) * contrast + mean
    return _turn_hue(x, hue).clamp(0, 1)


def _saturate(x: Tensor, factor: float) -> Tensor:
    """Scale HSV's saturation, at most to 1: in RGB, distances from the brightest channel grow by a factor."""
    high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    # s = (high - low) / high is capped at 1, so the factor is capped at high / (high - low).
    limit = torch.where(high > low, high / (high - low).clamp(min=1e-12), torch.ones_like(high))
    return high - (high - x) * torch.minimum(limit.clamp(min=0), torch.full_like(limit, factor))


def _turn_hue(x: Tensor, turn: float) -> Tensor:
    """Turn HSV's hue by ``turn`` of a circle, keeping value and saturation."""
    high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    spread = high - low
    r, g, b = x.unbind(-1)
    safe = spread[..., 0].clamp(min=1e-12)
    sector = torch.where(
        r == high[..., 0],
        (g - b) / safe,
        torch.where(g == high[..., 0], 2 + (b - r) / safe, 4 + (r - g) / safe),
    )
    hue = torch.where(spread[..., 0] > 0, sector, torch.zeros_like(sector)) + 6 * turn
    # A hue's channels, each a ramp between low and high around the circle of six sectors.
    offsets = torch.tensor((5.0, 3.0, 1.0), device=x.device)
    k = (hue[..., None] + offsets) % 6
    return high - spread * torch.minimum(k, 4 - k).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    """The grey of each pixel, ``(…, 1)``."""
    return (x * torch.tensor(GREY, device=x.device)).sum(-1, keepdim=True)


def _round(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)

"""How the library of a pretrained model makes an image its input: size, crop and interpolation.

Mean and std are fields of `ViViTConfig`; what is here belongs to how clips are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Interpolation = Literal["bilinear", "bicubic"]

# PIL's numbers, as preprocessor_config.json holds them, and timm's words.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# What stands in for filters that we do not have.
_NEAREST: dict[str, Interpolation] = {
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos": "bicubic",
    "random": "bicubic",
}


@dataclass(frozen=True)
class Preprocessing:
    """A square of `size` pixels from the centre, after the short side was resized to `short_side`.

    Attributes:
        notes: Where we do otherwise than the source's library.
    """

    size: int
    short_side: int
    interpolation: Interpolation
    notes: tuple[str, ...] = ()


def of_timm(pretrained: Mapping[str, Any], size: int) -> Preprocessing:
    """From timm's `pretrained_cfg`; `size`: what the model was made for."""
    notes = []
    if pretrained.get("crop_mode", "center") != "center":
        notes.append(f"timm's crop_mode={pretrained['crop_mode']}: the centre of the picture is cut instead")
    short_side = math.floor(size / float(pretrained.get("crop_pct") or 0.875))
    return _checked(size, short_side, str(pretrained.get("interpolation") or "bilinear"), notes)


def of_huggingface(preprocessor: Mapping[str, Any], size: int) -> Preprocessing:
    """From preprocessor_config.json; `size`: what config.json says the model was made for."""
    notes = []
    resized, crop = _side(preprocessor.get("size"), size), size
    if preprocessor.get("do_center_crop", "crop_size" in preprocessor):
        crop = _side(preprocessor.get("crop_size"), size)
    elif preprocessor.get("do_resize", True) and "shortest_edge" not in (preprocessor.get("size") or {}):
        crop = resized
        notes.append("the source squeezes pictures into a square: the centre is cut instead")
    short_side = max(resized, crop) if preprocessor.get("do_resize", True) else crop
    word = _FILTERS.get(preprocessor.get("resample", 2), "bilinear")
    return _checked(crop, short_side, word, notes)


def _side(value: Any, default: int) -> int:
    """The short side that a processor's size means."""
    if isinstance(value, Mapping):
        found = value.get("shortest_edge") or min(value.get("height") or 0, value.get("width") or 0)
        return int(found or default)
    return int(value or default)


def _checked(size: int, short_side: int, word: str, notes: list[str]) -> Preprocessing:
    found = _NEAREST.get(word, "bilinear")
    if word != found:
        notes.append(f"the source resizes by {word}: {found} instead")
    return Preprocessing(size, max(size, short_side), found, tuple(notes))

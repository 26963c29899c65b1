"""What a clip is: which frames, which size, which tubelets. A model carries its :class:`ClipSpec`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tubelet.clips.tubelets import token_shape
from tubelet.config import Settings
from tubelet.video import (
    AtFps,
    Dense,
    Interpolation,
    JitterCrop,
    Random,
    ResizedCrop,
    ShortSide,
    Uniform,
    View,
    test_views,
)

Positive = Annotated[int, Field(ge=1)]


def parse_views(text: str) -> tuple[int, int]:
    """``"4x3"`` to (4 temporal clips, 3 spatial crops).

    Raises:
        ValueError: not of that form, or a number that is not positive.
    """
    match = re.fullmatch(r"\s*([1-9][0-9]*)\s*[xX]\s*([1-9][0-9]*)\s*", text)
    if match is None:
        raise ValueError(f"views {text!r}: write temporal clips x spatial crops, for example 4x3")
    return int(match[1]), int(match[2])


def _as_views(value: Any) -> Any:
    return parse_views(value) if isinstance(value, str) else value


Views = Annotated[tuple[Positive, Positive], BeforeValidator(_as_views)]
"""Temporal clips x spatial crops of a video, whose logits are averaged: ``(4, 3)``, or ``"4x3"`` as text."""


class ClipSpec(Settings):
    """Sampling, size and tokens of a clip.

    ``stride``: frames between two sampled ones (dense sampling); ``fps`` samples by time instead; with both
    None the frames are spread over the whole video. ``size`` is the side of the square crop, cut after the
    short side was scaled to ``short_side`` (default: 256/224 of ``size``, as the paper's 256 to 224), by
    ``interpolation``.
    """

    frames: Positive = 32
    stride: Positive | None = 2
    fps: Annotated[float, Field(gt=0)] | None = None
    size: Positive = 224
    short_side: Positive | None = None
    tubelet: tuple[Positive, Positive, Positive] = (2, 16, 16)
    interpolation: Interpolation = "bilinear"

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what was not there before it could be set: models of before keep their identity."""
        found: dict[str, Any] = write(self)
        if self.interpolation == "bilinear":
            del found["interpolation"]
        return found

    @model_validator(mode="after")
    def _check(self) -> ClipSpec:
        if self.stride is not None and self.fps is not None:
            raise ValueError("stride and fps exclude each other: set stride=null to sample by fps")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(
                f"short_side {self.short_side} is smaller than size {self.size}: raise short_side"
            )
        try:
            token_shape(self.frames, self.size, self.size, self.tubelet)
        except ValueError as error:
            raise ValueError(f"{error}: change frames, size or tubelet") from None
        return self

    @property
    def resize_side(self) -> int:
        """The short side in pixels before the crop."""
        return self.short_side or round(self.size * 256 / 224)

    @property
    def tokens(self) -> int:
        """Tubelets per clip."""
        nt, nh, nw, _ = token_shape(self.frames, self.size, self.size, self.tubelet)
        return nt * nh * nw

    @property
    def token_bytes(self) -> int:
        """Bytes per tubelet, uint8."""
        return token_shape(self.frames, self.size, self.size, self.tubelet)[3]

    @property
    def sampling(self) -> str:
        """One word for tables and tags: ``32x2@224``, ``32uniform@224``, ``16at8fps@112``."""
        rule = f"at{self.fps:g}fps" if self.fps else "uniform" if self.stride is None else f"x{self.stride}"
        return f"{self.frames}{rule}@{self.size}"

    def sampling_of(self, views: tuple[int, int]) -> str:
        """What of a video a model sees, for rows: ``32x2@224 of 256 views=4x3``."""
        how = "" if self.interpolation == "bilinear" else f" {self.interpolation}"
        return f"{self.sampling} of {self.resize_side}{how} views={views[0]}x{views[1]}"

    def test_views(self, temporal: int = 1, spatial: int = 1) -> list[View]:
        """The ``temporal x spatial`` views of one video, clip by clip (ViViT section 4: 4 x 3)."""
        side, crop = self.resize_side, self.size
        return test_views(
            self.frames,
            self.stride,
            temporal,
            spatial,
            side,
            crop,
            fps=self.fps,
            interpolation=self.interpolation,
        )

    def random_time(self, u: float) -> Uniform | Dense | AtFps:
        """The time rule of a training clip; ``u`` in [0, 1) places it."""
        if self.fps is not None:
            return AtFps(self.frames, self.fps, Random(u))
        if self.stride is not None:
            return Dense(self.frames, self.stride, Random(u))
        return Uniform(self.frames, Random(u))


class TrainCrop(Settings):
    """How a training clip is cut out of the picture, one draw per clip (all its frames alike).

    ``jitter``: the short side to ``short_side``, height and width scaled by factors drawn independently
    from ``scale_jitter``, then a random crop (the paper); ``shift`` holds it to the centre: 1 anywhere,
    0 always the centre, between them that share of the way (for clips of a tracked object).
    ``resized``: a random area and aspect ratio, resized to the crop.
    ``centre``: no randomness.
    """

    crop: Literal["jitter", "resized", "centre"] = "jitter"
    scale_jitter: tuple[float, float] = (0.9, 1.33)
    shift: Annotated[float, Field(ge=0, le=1)] = 1.0
    area: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5

    def view(self, spec: ClipSpec, draw: np.random.Generator) -> View:
        """The view of one training sample. The count of draws is the same whatever ``crop``."""
        u_time, u_flip, *u = (float(value) for value in draw.random(6))
        space = self._space(spec, (u[0], u[1], u[2], u[3]), u_flip < self.flip)
        return View(spec.random_time(u_time), space, spec.interpolation)

    def _space(
        self, spec: ClipSpec, u: tuple[float, float, float, float], flip: bool
    ) -> JitterCrop | ResizedCrop | ShortSide:
        if self.crop == "jitter":
            top, left = (u_place * self.shift + (1 - self.shift) / 2 for u_place in u[2:])
            return JitterCrop(spec.resize_side, spec.size, self.scale_jitter, (*u[:2], top, left), flip)
        if self.crop == "resized":
            return ResizedCrop(spec.size, self.area, self.ratio, u, flip)
        return ShortSide(spec.resize_side, spec.size)

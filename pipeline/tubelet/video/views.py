"""A view is a clip of a video: which frames, and which part of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tubelet.video.framing import Interpolation, Placement, ShortSide, SpaceRule
from tubelet.video.sampling import AtFps, Dense, Linspace, Middle, TimeRule, Uniform


@dataclass(frozen=True)
class View:
    """One clip of a video."""

    time: TimeRule
    space: SpaceRule
    interpolation: Interpolation = "bilinear"

    def place(self, height: int, width: int) -> Placement:
        """Which part of a picture of ``height x width`` pixels, and how it is resized."""
        return replace(self.space.place(height, width), interpolation=self.interpolation)


def test_views(  # noqa: PLR0917 - the order of arguments is a contract
    frames: int,
    stride: int | None,
    temporal: int,
    spatial: int,
    short_side: int | None,
    crop: int | None,
    *,
    fps: float | None = None,  # noqa: PT028 - not a test
    interpolation: Interpolation = "bilinear",  # noqa: PT028
) -> list[View]:
    """The paper's evaluation: ``temporal`` evenly spread clips times ``spatial`` crops along the longer side.

    ``stride`` takes dense clips, ``fps`` clips by time, neither takes uniform clips over the whole video.
    One clip and one crop are the middle of the video and the centre of the picture. Clips vary slowest.
    """
    if min(temporal, spatial) < 1:
        raise ValueError(f"views must be at least 1x1, given {temporal}x{spatial}")
    if stride is not None and fps is not None:
        raise ValueError(f"give stride or fps, not both (stride={stride}, fps={fps})")
    offsets = [Middle()] if temporal == 1 else [Linspace(k, temporal) for k in range(temporal)]
    times: list[TimeRule] = []
    for offset in offsets:
        if stride is not None:
            times.append(Dense(frames, stride, offset))
        elif fps is not None:
            times.append(AtFps(frames, fps, offset))
        else:
            times.append(Uniform(frames, offset))
    if spatial == 1:
        spaces = [ShortSide(short_side, crop)]
    else:
        spaces = [ShortSide(short_side, crop, k / (spatial - 1), ceil=True) for k in range(spatial)]
    return [View(time, space, interpolation) for time in times for space in spaces]


# pytest would collect a function of this name wherever a test imports it.
test_views.__test__ = False  # type: ignore[attr-defined]

"""Where decoded frames go: into clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tubelet.video.container import Video
from tubelet.video.errors import DecodeError
from tubelet.video.framing import Box, Placement
from tubelet.video.info import FrameFormat
from tubelet.video.picture import Cutter, Painter, Pixels, Shape, crop_frame, display_matrix
from tubelet.video.sampling import Clock, Indices
from tubelet.video.views import View

Allocate = Callable[[int], Pixels]


def shown_shape(video: Video, frame: Any) -> Shape:
    """The shown shape that views are placed in: of the stream as opened, right side up as its frames say."""
    shape = Shape.of(frame, video.sample_aspect)
    height, width = video.coded_size
    if (height, width) == (frame.height, frame.width) or not height or not width:
        return shape
    return Shape(
        *shape.orientation.size(height, max(1, round(width * video.sample_aspect))), shape.orientation
    )


class ClipBuffers:
    """The clips while they fill: which frame goes where.

    Args:
        video: what is decoded.
        views: one per clip.
        picks: the frames of each, by their index in presentation order; repeats allowed.
        clock: of the frames that there are to pick from.
        allocate: gives the memory that all clips share.

    Attributes:
        clips: uint8 (T, H, W, 3) each, once a frame was taken.
        shape, frame: how the video is shown, and its first frame taken.
    """

    def __init__(
        self,
        video: Video,
        views: Sequence[View],
        picks: Sequence[Indices],
        clock: Clock,
        *,
        allocate: Allocate,
    ) -> None:
        self._video = video
        self._views = views
        self._allocate = allocate
        self._painter = Painter()
        self._cutter = Cutter()
        self._fits: dict[tuple[object, ...], tuple[Shape, list[Placement]]] = {}
        self._places: dict[int, list[tuple[int, int]]] = {}
        for view, pick in enumerate(picks):
            for position, number in enumerate(pick.tolist()):
                self._places.setdefault(number, []).append((view, position))
        self._lengths = [len(pick) for pick in picks]
        self.clips: list[Pixels] = []
        self.shape: Shape | None = None
        self.frame: FrameFormat | None = None

    @property
    def wanted(self) -> Indices:
        """Presentation indices, ascending."""
        return np.array(sorted(self._places), np.int64)

    def take(self, number: int, frame: Any) -> None:
        """Paint a frame wherever it is wanted."""
        self._paint(frame, self._places[number])

    def _paint(self, frame: Any, places: Sequence[tuple[int, int]]) -> None:
        self._video.budget.check_picture(frame.width, frame.height)
        if self._video.crop is not None:
            frame = crop_frame(frame, self._video.crop, self._cutter)
        if self.shape is None:
            self._begin(frame)
        kind = (frame.height, frame.width, display_matrix(frame))
        if kind not in self._fits:
            shape = Shape.of(frame, self._video.sample_aspect)
            self._fits[kind] = shape, [self._fit(shape, view) for view in range(len(self._views))]
        shape, placements = self._fits[kind]
        outs = [self.clips[view][position] for view, position in places]
        self._painter.paint(frame, shape, [placements[view] for view, _ in places], outs)

    def _begin(self, frame: Any) -> None:
        self.frame = FrameFormat.of(frame)
        self.shape = shown_shape(self._video, frame)
        placements = [view.place(self.shape.height, self.shape.width) for view in self._views]
        shapes = [(n, *p.size, 3) for n, p in zip(self._lengths, placements, strict=True)]
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
        if sum(sizes) > self._video.budget.limits.memory_bytes:
            raise DecodeError("too_large", f"the clips take {sum(sizes)} bytes (--memory)")
        memory = self._allocate(sum(sizes))
        ends = np.cumsum(sizes)
        self.clips = [
            memory[end - size : end].reshape(shape)
            for end, size, shape in zip(ends, sizes, shapes, strict=True)
        ]

    def _fit(self, shape: Shape, view: int) -> Placement:
        """Where the size changes in mid-stream, every picture still fills its clip."""
        placement = self._views[view].place(shape.height, shape.width)
        height, width = self.clips[view].shape[1:3]
        if placement.size == (height, width):
            return placement
        whole, all_of_it = Box(0, 0, shape.height, shape.width), Box(0, 0, height, width)
        return Placement(whole, height, width, all_of_it, interpolation=placement.interpolation)

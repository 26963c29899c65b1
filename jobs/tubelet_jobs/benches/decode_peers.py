"""The decoders that ``tubelet bench decode`` compares, each the way its own documentation makes it fast.

Every peer gets a path, frames by presentation index (a list of clips) and the output side, and gives uint8
(clips, T, side, side, 3): short side resized to ``side``, square cut from the centre. One thread each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Clips = list[list[int]]
Pixels = npt.NDArray[np.uint8]
Peer = Callable[[str, Clips, int], Pixels | None]


def resized(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at ``side``, as every peer here is asked for."""
    return max(side, height * side // width), max(side, width * side // height)


def _centre(frames: Pixels, side: int) -> Pixels:
    top, left = (frames.shape[-3] - side) // 2, (frames.shape[-2] - side) // 2
    return frames[..., top : top + side, left : left + side, :]


def _together(clips: list[Pixels]) -> Pixels:
    """One array; a single clip is not copied."""
    return clips[0][None] if len(clips) == 1 else np.stack(clips)


def tubelet() -> Peer:
    """This project, in this process."""
    from tubelet.video import Frames, ShortSide, View, decode_views

    def decode(path: str, clips: Clips, side: int) -> Pixels:
        views = [View(Frames(tuple(clip)), ShortSide(side, side)) for clip in clips]
        return _together([clip.frames for clip in decode_views(path, views).clips])

    return decode


class InSandbox:
    """This project, in its sandbox."""

    def __init__(self) -> None:
        from tubelet.video import Sandbox

        self._sandbox = Sandbox()

    def __call__(self, path: str, clips: Clips, side: int) -> Pixels:
        """Decode in the child."""
        from tubelet.video import Frames, ShortSide, View

        views = [View(Frames(tuple(clip)), ShortSide(side, side)) for clip in clips]
        return _together([clip.frames for clip in self._sandbox.decode_views(path, views).clips])

    def child_cpu_s(self) -> float:
        """Processor time that the child has used so far (its one thread's, to the nanosecond, from Linux)."""
        if self._sandbox.pid is None:
            return 0.0
        return int(Path(f"/proc/{self._sandbox.pid}/schedstat").read_text("utf-8").split()[0]) / 1e9


class Limit:
    """The same packets decoded and thrown away: open the file, read and decode what is needed, no picture.

    :meth:`prepare`, outside the time, lists the packets and makes the plan.
    """

    def __init__(self) -> None:
        self._table: Any = None
        self._runs: list[tuple[Any, set[int]]] = []

    def prepare(self, path: str, clips: Clips) -> None:
        """Plan which packets to decode for these frames."""
        from tubelet.video.access import reference_test
        from tubelet.video.container import open_video
        from tubelet.video.engine import plan_runs
        from tubelet.video.limits import Budget, Limits
        from tubelet.video.table import build_table, codec_name

        with open_video(path, Budget(Limits())) as video:
            table = self._table = build_table(video)
            assert table is not None
            wanted = np.unique(np.array([i for clip in clips for i in clip], np.int64))
            runs = plan_runs(table, wanted)
            referred_to = reference_test(codec_name(video), video.codec) or (lambda packet: True)
            video.reopen()
            packets = list(video.demux())
            self._runs = [
                (
                    run,
                    {i for i in range(run.start, run.stop + 1) if i in run.wanted or referred_to(packets[i])},
                )
                for run in runs
            ]

    def __call__(self, path: str, clips: Clips, side: int) -> None:
        """Decode them."""
        from tubelet.video.container import open_video
        from tubelet.video.engine import Feed
        from tubelet.video.limits import Budget, Limits

        with open_video(path, Budget(Limits())) as video:
            feed, codec = Feed(video, self._table), video.codec
            for run, needed in self._runs:
                for first, packets in feed.batches(run.start, run.stop):
                    for position, packet in enumerate(packets, first):
                        if position in needed:
                            codec.decode(packet)
                codec.decode(None)
                codec.flush_buffers()


def pyav() -> Peer:
    """PyAV as its documentation shows it: seek, decode on, convert what is wanted."""
    import av

    def decode(path: str, clips: Clips, side: int) -> Pixels:
        wanted = sorted({i for clip in clips for i in clip})
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            start = stream.start_time or 0
            step = 1 / (stream.average_rate * stream.time_base)
            ticks = {round(start + i * step): i for i in wanted}
            if wanted[0] > 0:
                container.seek(min(ticks), stream=stream)
            height, width = resized(stream.height, stream.width, side)
            found: dict[int, Pixels] = {}
            for frame in container.decode(stream):
                number = ticks.get(frame.pts)
                if number is not None:
                    found[number] = _centre(
                        frame.to_ndarray(width=width, height=height, format="rgb24"), side
                    )
                    if len(found) == len(wanted):
                        break
        return np.stack([[found[i] for i in clip] for clip in clips])

    return decode


def decord2() -> Peer:
    """decord2, scaling in its reader."""
    import decord

    sizes: dict[str, tuple[int, int]] = {}

    def decode(path: str, clips: Clips, side: int) -> Pixels:
        if path not in sizes:
            sizes[path] = decord.VideoReader(path)[0].shape[:2]
        height, width = resized(*sizes[path], side)
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        wanted = sorted({i for clip in clips for i in clip})
        frames = _centre(reader.get_batch(wanted).asnumpy(), side)
        return np.stack([frames[np.searchsorted(wanted, clip)] for clip in clips])

    return decode


def torchcodec() -> Peer:
    """torchcodec, scaling and cropping in its decoder."""
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    torch.set_num_threads(1)
    sizes: dict[str, tuple[int, int]] = {}

    def decode(path: str, clips: Clips, side: int) -> Pixels:
        if path not in sizes:
            meta = VideoDecoder(path).metadata
            sizes[path] = (int(meta.height or 0), int(meta.width or 0))
        steps = [Resize(resized(*sizes[path], side)), CenterCrop((side, side))]
        reader = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, transforms=steps)
        wanted = sorted({i for clip in clips for i in clip})
        frames = reader.get_frames_at(wanted).data.numpy()
        return np.stack([frames[np.searchsorted(wanted, clip)] for clip in clips])

    return decode


def opencv() -> Peer:
    """OpenCV: grab what is not wanted, retrieve what is."""
    import os

    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "threads;1"
    import cv2

    cv2.setNumThreads(1)

    def decode(path: str, clips: Clips, side: int) -> Pixels:
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        size = (int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)))
        height, width = resized(*size, side)
        wanted = sorted({i for clip in clips for i in clip})
        found: dict[int, Any] = {}
        position = 0
        if wanted[0] > 64:
            capture.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
            position = wanted[0]
        for number in wanted:
            while position <= number:
                if not capture.grab():
                    raise RuntimeError(f"OpenCV ends before frame {number} of {path}")
                position += 1
            small = cv2.resize(capture.retrieve()[1], (width, height), interpolation=cv2.INTER_AREA)
            found[number] = cv2.cvtColor(_centre(small, side), cv2.COLOR_BGR2RGB)
        return np.stack([[found[i] for i in clip] for clip in clips])

    return decode


OURS = {"tubelet": tubelet, "tubelet-sandbox": InSandbox}
LIMIT = {"limit": Limit}
PEERS = {"decord2": decord2, "torchcodec": torchcodec, "opencv": opencv, "pyav": pyav}

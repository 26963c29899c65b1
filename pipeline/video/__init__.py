"""Bytes to clips: probe a video, choose frames by presentation time, decode them exactly and fast.

Needs PyAV and NumPy only. :func:`decode_clip` and :func:`decode_views` decode here; :class:`Sandbox`
decodes in a child process that no file can take down with it.
"""

from pipeline.video.decode import Clip, Decoded, decode_clip, decode_views, probe
from pipeline.video.errors import DecodeError
from pipeline.video.framing import Box, JitterCrop, Placement, ResizedCrop, ShortSide, SpaceRule, Stretch
from pipeline.video.info import VideoInfo
from pipeline.video.limits import Limits
from pipeline.video.sampling import (
    AtFps,
    Clock,
    Dense,
    Frames,
    Linspace,
    Middle,
    Random,
    TimeRule,
    Times,
    Uniform,
)
from pipeline.video.sandbox import Sandbox
from pipeline.video.source import Source
from pipeline.video.views import View, test_views

__all__ = [
    "AtFps",
    "Box",
    "Clip",
    "Clock",
    "DecodeError",
    "Decoded",
    "Dense",
    "Frames",
    "JitterCrop",
    "Limits",
    "Linspace",
    "Middle",
    "Placement",
    "Random",
    "ResizedCrop",
    "Sandbox",
    "ShortSide",
    "Source",
    "SpaceRule",
    "Stretch",
    "TimeRule",
    "Times",
    "Uniform",
    "VideoInfo",
    "View",
    "decode_clip",
    "decode_views",
    "probe",
    "test_views",
]

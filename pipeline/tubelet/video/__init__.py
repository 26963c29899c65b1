"""Bytes to clips: probe a video, choose frames by presentation time, decode them exactly and fast.

Needs PyAV and NumPy only. :func:`decode_clip` and :func:`decode_views` decode here; :class:`Sandbox`
decodes in a child process that no file can take down with it.
"""

from tubelet.video.content import Content
from tubelet.video.decode import Clip, Decoded, decode_clip, decode_views, probe
from tubelet.video.errors import (
    MAX_ATTEMPTS,
    TRANSIENT,
    DecodeError,
    DecoderStartError,
    ErrorCode,
    Status,
    to_retry,
)
from tubelet.video.framing import (
    Box,
    Interpolation,
    JitterCrop,
    Placement,
    ResizedCrop,
    ShortSide,
    SpaceRule,
    Stretch,
)
from tubelet.video.info import VideoInfo
from tubelet.video.limits import Limits
from tubelet.video.sampling import (
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
from tubelet.video.sandbox import Sandbox
from tubelet.video.source import Source
from tubelet.video.transcode import Copied, CopySpec, transcode
from tubelet.video.views import View, test_views

__all__ = [
    "MAX_ATTEMPTS",
    "TRANSIENT",
    "AtFps",
    "Box",
    "Clip",
    "Clock",
    "Content",
    "Copied",
    "CopySpec",
    "DecodeError",
    "Decoded",
    "DecoderStartError",
    "Dense",
    "ErrorCode",
    "Frames",
    "Interpolation",
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
    "Status",
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
    "to_retry",
    "transcode",
]

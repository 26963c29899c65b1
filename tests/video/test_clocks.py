"""A frame's picture and time do not depend on what else is asked, whatever the clock of the file does."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.video import EveryFrame, alone_equal, make_video, pictures, sequential
from tubelet.video import (
    DecodeError,
    Frames,
    Limits,
    ShortSide,
    Times,
    Uniform,
    View,
    decode_clip,
    decode_views,
    probe,
)
from tubelet.video.clock import clock_steps

X264 = {"preset": "veryfast", "bf": "3", "sc_threshold": "0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:bframes=3:keyint=12:min-keyint=12"}
WHOLE = View(EveryFrame(), ShortSide())
CODECS: dict[str, dict[str, Any]] = {
    "h264": {"options": X264},
    "hevc": {"codec": "libx265", "options": X265},
    "mpeg2": {"codec": "mpeg2video", "options": {"bf": "2"}},
}
# When the second of two recordings of two seconds begins, in seconds on the clock of the first.
RESTARTS = {"set_back": 0, "off_the_grid": 0.013, "set_back_within": 1.17, "ahead_five_hours": 18_000}


def _copy(source: Path, target: Path, lost: Iterable[int] = (), shift_s: float = 0) -> Path:
    """The packets of a video, later by ``shift_s``, without the ``lost`` ones (decode order)."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            if number not in set(lost):
                shift = round(Fraction(shift_s) / packet.time_base)
                packet.pts += shift
                if packet.dts is not None:
                    packet.dts += shift
                packet.stream = stream
                out.mux(packet)
    return target


@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_clock_that_steps(tmp_path: Path, codec: str, restart: str) -> None:
    first = make_video(tmp_path / "a.ts", size=(96, 64), gop=12, **CODECS[codec])
    second = _copy(first, tmp_path / "b.ts", shift_s=RESTARTS[restart])
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    reference = sequential(path)
    decoded = decode_views(path, [WHOLE])
    assert decoded.error is None
    assert decoded.info.frames == len(reference.frames) == 120
    assert decoded.info.duration_s == pytest.approx(4.0, abs=0.001)
    assert probe(path).duration_s == pytest.approx(4.0, abs=0.001)
    np.testing.assert_allclose(decoded.clips[0].times_s, np.arange(120) / 30, atol=0.001)
    for number, pixels in enumerate(decoded.clips[0].frames):
        np.testing.assert_array_equal(pixels, reference.rgb(number), err_msg=f"frame {number}")
    assert not alone_equal(path, count=12)


def test_steps_are_falls_and_leaps_not_disorder() -> None:
    ticks = [0, 40, 80, 79, 120, None, 160, 20, 60, 15_000, 15_040]
    base = Fraction(1, 1000)
    assert np.flatnonzero(clock_steps(ticks, base, jumps=True)).tolist() == [7, 9]
    assert np.flatnonzero(clock_steps(ticks, base, jumps=False)).tolist() == [7]


def test_a_gap_in_a_container_without_leaps_stays(tmp_path: Path) -> None:
    """A slide shown for a minute in a file with one clock is a minute long."""
    ticks = [0, 20, 40, 600 * 60, 600 * 60 + 20]
    path = make_video(tmp_path / "a.mkv", frames=5, ticks=ticks, options=X264)
    assert decode_clip(path, frames=[3]).times_s == pytest.approx([60.0])


LOSSY: dict[str, dict[str, Any]] = {**CODECS, "mpeg4": {"codec": "mpeg4", "options": {"bf": "2"}}}


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
@pytest.mark.parametrize("codec", LOSSY)
def test_lost_packets(tmp_path: Path, codec: str, suffix: str) -> None:
    if (codec, suffix) == ("mpeg4", "ts"):
        pytest.skip("such streams carry their header once, and no tool writes them")
    whole = make_video(tmp_path / f"a.{suffix}", frames=72, size=(96, 64), gop=12, **LOSSY[codec])
    path = _copy(whole, tmp_path / f"lossy.{suffix}", lost=[4, 17, 25, 26, 40, 60])
    assert not alone_equal(path, count=24)


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("h264", "mkv"), ("hevc", "mp4")])
@pytest.mark.parametrize("lost", [[30], [24, 25], [26, 27, 28, 40]])
def test_packets_number_frames_only_where_none_was_lost(
    tmp_path: Path, codec: str, suffix: str, lost: list[int]
) -> None:
    """Phones and screen recorders make gaps, too: there the index is believed, which costs no decoding."""
    ticks = [20 * number + 200 * (number > 20) + 60 * (number > 33) for number in range(50)]
    whole = make_video(
        tmp_path / f"a.{suffix}", frames=50, size=(96, 64), gop=12, ticks=ticks, **CODECS[codec]
    )
    assert probe(whole).frames == 50
    path = _copy(whole, tmp_path / f"lossy.{suffix}", lost=lost)
    assert probe(path).frames is None
    assert not alone_equal(path, count=8)


def test_the_picture_of_a_time_is_that_of_its_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", options=X264)
    for number in (0, 31, 59):
        by_number = decode_clip(path, frames=[number])
        by_time = decode_views(path, [View(Times((number / 30 + 0.001,)), ShortSide())]).clips[0]
        np.testing.assert_array_equal(by_time.frames, by_number.frames)


@pytest.mark.parametrize("name", ["a.mov", "a.avi"])
@pytest.mark.parametrize("codec", ["qtrle", "msvideo1", "cinepak", "mpeg4", "ffv1"])
def test_all_packets_flagged_as_keyframes(tmp_path: Path, codec: str, name: str) -> None:
    """A file without a table of keyframes: each frame is that of decoding from the start."""
    if (codec, name) in {("qtrle", "a.avi"), ("ffv1", "a.mov"), ("msvideo1", "a.mov")}:
        pytest.skip("not written by FFmpeg")
    pix_fmt = {"mpeg4": "yuv420p", "ffv1": "yuv420p", "msvideo1": "rgb555le"}.get(codec, "rgb24")
    path = make_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, frames=40, size=(64, 48), gop=20)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"stss", b"free"))
    reference = sequential(path)
    for wanted in ([39], [17], [3, 30], [25, 26]):
        clip = decode_clip(path, frames=wanted)
        for number, pixels in zip(wanted, clip.frames, strict=True):
            np.testing.assert_array_equal(pixels, reference.rgb(number), err_msg=f"{number} of {wanted}")


def test_frames_are_counted_once(tmp_path: Path) -> None:
    """In AVI only decoding tells which frames there are; the second look at them costs no budget."""
    path = make_video(tmp_path / "a.avi", codec="mpeg4", options={"bf": "2"}, frames=50, size=(64, 48))
    view = View(Uniform(8), ShortSide(32))
    decoded = decode_views(path, [view], limits=Limits(max_frames=50))
    assert (decoded.info.frames, decoded.error) == (50, None)
    with pytest.raises(DecodeError, match="more than 49 frames") as caught:
        decode_views(path, [view], limits=Limits(max_frames=49))
    assert caught.value.code == "too_large"


def test_one_packet_that_does_not_decode_makes_a_video_partial(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4", frames=120, size=(64, 48))
    with av.open(str(path)) as container:
        content = bytes(next(islice(container.demux(video=0), 40, None)))
    data = bytearray(path.read_bytes())
    data[data.index(content) + 3] = 0xA6  # no start code of a picture any more
    decoded = decode_views(bytes(data), [View(Uniform(8), ShortSide(32))])
    assert decoded.error is not None
    assert (decoded.error.code, decoded.info.frames) == ("partial", 119)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mpeg4"), ("a.vob", "mpeg2video"), ("b.avi", "libx264")]
)
def test_thirty_five_minutes_that_only_decoding_tells(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        turn = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures(50, 64, 48)]
        turn = [frame.reformat(format="yuv420p") for frame in turn]
        for number in range(52_500):
            frame = turn[number % 50]
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    decoded = decode_views(path, [View(Uniform(8), ShortSide(32)), View(Frames((52_499,)), ShortSide(32))])
    assert decoded.info.frames == 52_500
    assert decoded.info.duration_s == pytest.approx(2100, abs=0.1)
    assert decoded.error is None

"""Frames equal those of decoding the whole stream, bit for bit; times are the stream's own."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.video import make_video, pictures, sequential
from tubelet.video import (
    Dense,
    Frames,
    Random,
    ResizedCrop,
    ShortSide,
    Stretch,
    Uniform,
    View,
    decode_clip,
    decode_views,
    probe,
)

X264 = {"preset": "veryfast", "bf": "3", "sc_threshold": "0"}
VFR = [20 * i + (i % 5) * 3 + 300 * (i // 20) for i in range(60)]


def _x265(settings: str) -> dict:
    params = f"log-level=none:pools=none:frame-threads=1:{settings}"
    return {"codec": "libx265", "options": {"preset": "superfast", "x265-params": params}}


SHAPES: dict[str, tuple[str, dict]] = {
    "h264_b_frames": ("a.mp4", {"options": X264}),
    "h264_pyramid": ("a.mp4", {"options": {**X264, "x264-params": "b-pyramid=normal:ref=4"}}),
    "h264_open_gop": ("a.mp4", {"options": {**X264, "x264-params": "open-gop=1:b-pyramid=normal"}}),
    "h264_intra_refresh": ("a.ts", {"options": {**X264, "bf": "0", "x264-params": "intra-refresh=1"}}),
    "h264_interlaced": ("a.mkv", {"options": {**X264, "x264-params": "tff=1"}}),
    "h264_10_bit": ("a.mp4", {"options": X264, "pix_fmt": "yuv420p10le"}),
    "h264_444": ("a.mp4", {"options": X264, "pix_fmt": "yuv444p"}),
    "h264_odd_size": ("a.mp4", {"options": X264, "size": (161, 97), "pix_fmt": "yuv444p"}),
    "h264_ts": ("a.ts", {"options": X264}),
    "h264_mkv": ("a.mkv", {"options": X264}),
    "h264_flv": ("a.flv", {"options": X264}),
    "h264_vfr": ("a.mp4", {"options": X264, "ticks": VFR}),
    "h264_vfr_mkv": ("a.mkv", {"options": X264, "ticks": VFR}),
    "h264_fragmented": (
        "a.mp4",
        {"options": X264, "container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}},
    ),
    "hevc": ("a.mp4", _x265("bframes=3")),
    "hevc_open_gop": (
        "a.mp4",
        _x265("bframes=4:open-gop=1:keyint=20"),
    ),
    "hevc_temporal_layers": (
        "a.mkv",
        _x265("bframes=3:b-adapt=0:temporal-layers=3"),
    ),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    "vp9_alt_ref": (
        "a.webm",
        {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "12"}},
    ),
    "vp8": ("a.webm", {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    "av1": ("a.mp4", {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}}),
    "mpeg4_avi": ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "mpeg2_ts": ("a.ts", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "mpeg2_ps": ("a.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "mjpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "ffv1": ("a.mkv", {"codec": "ffv1"}),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(SHAPES))
def shape(request, tmp_path_factory) -> Path:
    name, settings_ = SHAPES[request.param]
    return make_video(tmp_path_factory.mktemp(request.param) / name, **settings_)


def test_every_frame_is_that_of_sequential_decoding(shape: Path) -> None:
    reference = sequential(shape)
    n = len(reference.frames)
    info = probe(shape)
    assert info.frames in (None, n)
    for wanted in (list(range(n)), [n - 1], [n // 2], [0], [7, 30, 31, 55], list(range(n - 1, -1, -9))):
        clip = decode_clip(shape, frames=wanted)
        for number, pixels in zip(wanted, clip.frames, strict=True):
            np.testing.assert_array_equal(
                pixels, reference.rgb(number), err_msg=f"frame {number} of {wanted}"
            )
        if reference.times_s is not None:
            np.testing.assert_allclose(clip.times_s, reference.times_s[wanted], atol=1e-9)


def test_bytes_and_files_and_callables_give_the_same(shape: Path) -> None:
    expected = decode_clip(shape, frames=[3, 40], short_side=48, crop=32).frames
    data = shape.read_bytes()
    for source in (data, io.BytesIO(data), partial(open, shape, "rb"), str(shape)):
        np.testing.assert_array_equal(
            decode_clip(source, frames=[3, 40], short_side=48, crop=32).frames, expected
        )


@pytest.fixture(scope="module")
def gops(tmp_path_factory) -> Path:
    options = {**X264, "x264-params": "open-gop=1:b-pyramid=normal:ref=4"}
    return make_video(tmp_path_factory.mktemp("gops") / "a.mp4", frames=180, gop=20, options=options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.integers(0, 179), min_size=1, max_size=12))
def test_any_choice_of_frames_is_exact(gops: Path, wanted: list[int]) -> None:
    reference = sequential_rgb(gops)
    clip = decode_clip(gops, frames=wanted)
    np.testing.assert_array_equal(clip.frames, reference[wanted])


_rgb: dict[Path, np.ndarray] = {}


def sequential_rgb(path: Path) -> np.ndarray:
    if path not in _rgb:
        reference = sequential(path)
        _rgb[path] = np.stack([reference.rgb(i) for i in range(len(reference.frames))])
    return _rgb[path]


def test_times_take_the_last_frame_presented_at_or_before(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", options=X264, ticks=VFR)
    times_s = sequential(path).times_s
    assert times_s is not None
    assert probe(path).vfr
    asked = [0.0, times_s[7], times_s[7] + 1e-4, times_s[8] - 1e-4, 1e9, -3.0]
    clip = decode_clip(path, times_s=asked)
    np.testing.assert_allclose(
        clip.times_s, [0, times_s[7], times_s[7], times_s[7], times_s[-1], 0], atol=1e-9
    )


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    path = make_video(tmp_path / "a.mp4", frames=4, options=X264, rotation=degrees)
    reference = sequential(path)
    clip = decode_clip(path, frames=[2])
    turned = np.rot90(reference.rgb(2), reference.frames[2].rotation // 90)
    np.testing.assert_array_equal(clip.frames[0], turned)
    info = probe(path)
    assert info.rotation == -degrees % 360
    assert (info.height, info.width) == clip.frames.shape[1:3]
    space = ResizedCrop(32, (0.2, 0.2), (1.0, 1.0), (0.5, 0.5, 0.1, 0.8))
    part = decode_views(path, [View(Frames((2,)), space)])
    whole = decode_clip(path, frames=[2])
    height, width = info.height, info.width
    top, left, side = int(0.1 * (height - 55 + 1)), int(0.8 * (width - 55 + 1)), 55
    near = whole.frames[0][top : top + side, left : left + side].mean((0, 1))
    assert np.abs(part.clips[0].frames[0].mean((0, 1)) - near).max() < 12


def test_pixels_become_square(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=4, options=X264, aspect=Fraction(4, 3))
    info = probe(path)
    assert (info.width, info.height) == (213, 96)
    assert decode_clip(path, frames=[0]).frames.shape == (1, 96, 213, 3)
    assert decode_clip(path, frames=[0], short_side=48).frames.shape == (1, 48, 106, 3)


@pytest.mark.parametrize(("matrix", "levels"), [(1, 1), (1, 2), (6, 1), (6, 2), (9, 1)])
def test_colours_are_as_the_stream_says(tmp_path: Path, matrix: int, levels: int) -> None:
    """A grey ramp and a red tile, coded with a matrix and a range, come back as they were."""
    path, source = tmp_path / "a.mkv", next(pictures(1, 160, 96))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, levels
        space = {1: "ITU709", 6: "ITU601", 9: "BT2020"}[matrix]
        frame = av.VideoFrame.from_ndarray(source, format="rgb24").reformat(
            format="yuv444p", dst_colorspace=space, dst_color_range=levels
        )
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert (info.color_space, info.color_range) == (matrix, levels)
    assert np.abs(decode_clip(path, frames=[0]).frames[0].astype(int) - source).mean() < 2
    small = decode_clip(path, frames=[0], short_side=48).frames[0]
    expected = av.VideoFrame.from_ndarray(source, format="rgb24").to_ndarray(
        width=80, height=48, format="rgb24"
    )
    assert np.abs(small.astype(int) - expected).mean() < 3


def test_a_change_of_size_in_mid_stream_fills_the_clip(tmp_path: Path) -> None:
    first = make_video(tmp_path / "a.ts", options=X264, frames=30)
    second = make_video(tmp_path / "b.ts", options=X264, frames=30, size=(96, 64))
    both = first.read_bytes() + second.read_bytes()
    clip = decode_views(both, [View(Uniform(8), ShortSide(48, 40))]).clips[0]
    assert clip.frames.shape == (8, 40, 40, 3)
    whole = decode_views(both, [View(Uniform(8), ShortSide(None, None))]).clips[0]
    assert whole.frames.shape[1:3] == (96, 160)


def test_several_views_are_those_decoded_one_by_one(gops: Path) -> None:
    views = [
        View(Uniform(8), ShortSide(48, 32)),
        View(Dense(8, 3, Random(0.7)), ShortSide(64, 48, 1.0)),
        View(Frames((5, 5, 2)), Stretch(40, 50)),
    ]
    together = decode_views(gops, views)
    for view, clip in zip(views, together.clips, strict=True):
        alone = decode_views(gops, [view])
        np.testing.assert_array_equal(clip.frames, alone.clips[0].frames)
        np.testing.assert_array_equal(clip.times_s, alone.clips[0].times_s)
        assert alone.info == together.info


def test_a_window_is_all_that_exists(gops: Path) -> None:
    clip = decode_views(gops, [View(Uniform(4), ShortSide(None, None))], window_s=(2.0, 3.0)).clips[0]
    assert clip.times_s.min() >= 2.0
    assert clip.times_s.max() < 3.0
    reference = sequential_rgb(gops)
    np.testing.assert_array_equal(clip.frames, reference[np.round(clip.times_s * 30).astype(int)])


def test_what_is_decoded_is_what_is_needed(gops: Path) -> None:
    """A frame deep in the video costs its group of pictures, not the video."""
    from tubelet.video.container import open_video
    from tubelet.video.engine import IndexedDecoder
    from tubelet.video.limits import Budget, Limits
    from tubelet.video.table import build_table

    with open_video(gops, Budget(Limits())) as video:
        table = build_table(video)
        assert table is not None
        decoder = IndexedDecoder(video, table, lambda number, frame: None)
        decoder.decode(np.array([95, 150]))
        assert decoder.taken == {95, 150}
        assert video.budget.frames <= 2 * 22


def test_scaled_colours_are_close_to_exact_arithmetic(tmp_path: Path) -> None:
    """Much colour in fine detail: no bias, no nearest-neighbour colour. By BT.601, in floating point."""
    from tubelet_jobs.benches.decode_corpus import Recipe, make

    path = make(Recipe("colour", "h264", "libx264", 340, 256, 30, frames=10), tmp_path)
    frame = sequential(path).frames[5]
    planes = frame.reformat(297, 224, "yuv444p", interpolation="BILINEAR").planes
    rows = [np.frombuffer(p, np.uint8).reshape(224, p.line_size)[:, :297] for p in planes]
    y, u, v = (row.astype(float) for row in rows)
    y, u, v = (y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224
    rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], -1)
    expected = np.clip(rgb, 0, 255)
    error = decode_clip(path, frames=[5], short_side=224).frames[0] - expected
    assert np.abs(error).mean() < 0.6
    assert abs(error.mean()) < 0.2

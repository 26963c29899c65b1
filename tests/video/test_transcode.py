"""Copies show what their originals show, at the same times, and are cheap to seek in."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.video import EveryFrame, make_video
from tubelet.video import CopySpec, DecodeError, Limits, Sandbox, View, decode_views, transcode
from tubelet.video.views import SpaceRule
from tubelet_jobs.demo_corpus import MOTIONS, encode, render

SPEC = CopySpec(short_side=48, gop=8)
UNEVEN = list(accumulate(islice(cycle([10, 30, 17]), 60)))

KINDS: dict[str, dict[str, Any]] = {
    "b-frames": {"options": {"bf": "3"}},
    "variable-rate": {"ticks": UNEVEN},
    "rotated": {"rotation": 90},
    "anamorphic": {"aspect": Fraction(4, 3)},
    "smaller": {"size": (62, 46)},
    "odd": {"codec": "ffv1", "size": (71, 53), "pix_fmt": "yuv444p"},
}


def frames_of(source: Path | bytes, space: SpaceRule, window_s: tuple[float, float] | None = None) -> Any:
    """All frames as float, and their times from the first of them."""
    clip = decode_views(source, [View(EveryFrame(), space)], window_s=window_s).clips[0]
    return clip.frames.astype(np.float32), clip.times_s - clip.times_s[0]


@pytest.mark.parametrize("window_s", [None, (0.5, 1.2)], ids=["whole", "window"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_shows_the_same_at_the_same_times(
    kind: str, window_s: tuple[float, float] | None, tmp_path: Path
) -> None:
    suffix = "mkv" if KINDS[kind].get("codec") else "mp4"
    path = make_video(tmp_path / f"video.{suffix}", **KINDS[kind])
    copied = transcode(str(path), SPEC, window_s=window_s)
    data = copied.file.read()
    assert copied.error is None

    wanted, times_s = frames_of(path, SPEC, window_s)
    found, found_s = frames_of(data, SPEC)
    np.testing.assert_allclose(found_s, times_s, atol=1e-9)
    assert found.shape == wanted.shape
    assert min(found.shape[1:3]) <= 48
    # Colour at half the resolution costs a little everywhere; another matrix or range would cost a shift.
    assert np.abs(found - wanted).mean() < 10
    assert np.abs((found - wanted).mean((0, 1, 2))).max() < 2.5
    info = copied.info
    assert (info.codec, info.rotation, info.frames, info.start_s) == ("h264", 0, len(wanted), 0)
    assert (info.height, info.width) == found.shape[1:3]


def test_a_copy_has_short_groups_no_b_frames_no_sound_and_its_index_first(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", gop=250, options={"bf": "3"})
    copied = transcode(str(path), SPEC)
    data = copied.file.read()
    assert data.index(b"moov") < data.index(b"mdat")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(data)
    with av.open(str(copy)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert all(packet.pts == packet.dts for packet in packets)
    assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, 60, 8))


def test_a_copy_made_again_is_the_same_byte_for_byte() -> None:
    """What memory held before must not reach the encoder: by x264's macroblock tree and AVX-512 it did."""
    draw, held = np.random.default_rng(0), []
    for number, motion in enumerate(MOTIONS):
        data = encode(*render(motion, np.random.default_rng([0, 1, number])))
        made = set()
        for _ in range(6):
            made.add(transcode(data, CopySpec(short_side=64)).file.read())
            held = [*held[-4:], draw.bytes(int(draw.integers(1, 400_000)))]
        assert len(made) == 1, motion


def test_the_sandbox_makes_the_same_copies_and_keeps_its_limits(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4")
    alone = transcode(str(path), SPEC).file.read()
    with Sandbox(Limits(max_frames=60)) as sandbox:
        for _ in range(2):
            with sandbox.transcode(str(path), SPEC).file as file:
                assert file.read() == alone
        assert sandbox.transcode(str(path), SPEC, window_s=(0.5, 1.0)).info.frames == 15
        with pytest.raises(DecodeError, match="no container"):
            sandbox.transcode(b"no video " * 40, SPEC)
    with Sandbox(Limits(max_frames=59)) as sandbox, pytest.raises(DecodeError, match="--max-frames"):
        sandbox.transcode(str(path), SPEC)


def test_what_breaks_off_repeats_the_last_good_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", container_options={"movflags": "faststart"}, gop=10)
    data = path.read_bytes()
    cut = data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 3 // 4]
    copied = transcode(cut, SPEC)
    assert copied.error is not None
    assert copied.error.code == "partial"
    wanted, times_s = frames_of(cut, SPEC)
    found, found_s = frames_of(copied.file.read(), SPEC)
    assert len(found) == len(wanted)
    assert np.abs(found - wanted).mean() < 10
    short = data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 4]
    with pytest.raises(DecodeError):
        transcode(short, SPEC)
    np.testing.assert_allclose(found_s[: len(times_s) // 2], times_s[: len(times_s) // 2], atol=1e-9)

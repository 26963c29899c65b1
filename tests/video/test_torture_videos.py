"""Files that break decoders: every one ends as expected or better, in time, and takes nothing down.

One case a file: some made here, those of ``../shared/data/torture``, and those of ``TUBELET_VIDEOS``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from support.video import Listed, listed_videos, make_video, sequential
from tubelet.video import DecodeError, Frames, Limits, Sandbox, ShortSide, Uniform, VideoInfo, View

X264 = {"preset": "veryfast", "bf": "3", "sc_threshold": "0"}
# Pixels of reference decoding a file: an 8K file is compared in a few frames, a small one in all.
REFERENCE_PIXELS = 60_000_000
DEADLINE_S = 60.0


@cache
def made() -> tuple[TemporaryDirectory[str], list[Listed]]:
    """A small video, and what can happen to it."""
    keep = TemporaryDirectory(prefix="tubelet-torture-")
    folder = Path(keep.name) / "made"  # names of tests: the same in both processes of `make test`
    folder.mkdir()
    good = make_video(folder / "good.mp4", options=X264)
    data = good.read_bytes()
    moov = data.index(b"moov") - 4
    front = make_video(folder / "front.mp4", options=X264, container_options={"movflags": "+faststart"})
    cases = {
        "empty.mp4": (b"", "open_error"),
        "garbage.mp4": (np.random.default_rng(7).bytes(4096), "open_error"),
        "s3_error.mp4": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "open_error"),
        "no_index.mp4": (data[:moov], "open_error"),
        "playlist.m3u8": (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "open_error"),
        "concat.txt": (b"ffconcat version 1.0\nfile 'good.mp4'\n", "open_error"),
        "truncated.mp4": (front.read_bytes()[: int(front.stat().st_size * 0.75)], "partial"),
        "zeroed.mp4": (data[:200] + bytes(moov - 200) + data[moov:], "decode_error"),
    }
    found = [Listed(good, "ok"), Listed(front, "ok")]
    for name, (content, expect) in cases.items():
        (folder / name).write_bytes(content)
        found.append(Listed(folder / name, expect))
    found.append(Listed(make_audio(folder / "audio.wav"), "no_video_stream"))
    return keep, found


def make_audio(path: Path) -> Path:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    return path


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Limits(deadline_s=DEADLINE_S)) as box:
        yield box


def outcome(sandbox: Sandbox, path: Path) -> tuple[str, VideoInfo | None]:
    """The class of a file: that of the decoder's error, or ok."""
    try:
        info = sandbox.probe(path)
        decoded = sandbox.decode_views(path, [View(Uniform(8), ShortSide(64, 64))])
    except DecodeError as error:
        return error.code, None
    assert decoded.clips[0].frames.shape == (8, 64, 64, 3)
    assert (np.diff(decoded.clips[0].times_s) >= 0).all()
    return ("ok" if decoded.error is None else decoded.error.code), info


def is_as_good(got: str, expect: str) -> bool:
    rank = {"ok": 2, "partial": 1}
    return got == expect or rank.get(got, 0) > rank.get(expect, 0)


def cases() -> list[ParameterSet]:
    """One a file. Decoding 4K and 8K takes many seconds of a core: those run with the slow tests."""
    return [
        pytest.param(
            video,
            id=f"{video.path.parent.name}/{video.path.name}",
            marks=[pytest.mark.slow] if video.pixels >= 3840 * 2160 else [],
        )
        for video in [*made()[1], *listed_videos()]
    ]


@pytest.mark.parametrize("video", cases())
def test_torture(sandbox: Sandbox, video: Listed) -> None:
    begin_s = time.monotonic()
    got, info = outcome(sandbox, video.path)
    assert time.monotonic() - begin_s < 2 * DEADLINE_S + 5
    assert is_as_good(got, video.expect), f"expected {video.expect}, got {got}"
    if video.expect == "ok":
        assert info is not None
        check_frames(sandbox, video.path, info)


def check_frames(sandbox: Sandbox, path: Path, info: VideoInfo) -> None:
    """Frames are those of sequential decoding, times are the stream's own."""
    limit = int(np.clip(REFERENCE_PIXELS // (info.coded_width * info.coded_height), 2, 400))
    reference = sequential(path, info.stream_index, limit=limit)
    n = len(reference.frames)
    if n < limit:
        assert info.frames in (None, n)
    wanted = sorted({0, n // 3, n // 2, min(n // 2 + 1, n - 1), (2 * n) // 3, n - 1})
    clip = sandbox.decode_views(path, [View(Frames(tuple(wanted)), ShortSide())]).clips[0]
    if reference.times_s is not None:
        np.testing.assert_allclose(clip.times_s, reference.times_s[wanted], atol=1e-6)
    if info.sample_aspect == 1 and not info.mirrored:
        for number, pixels in zip(wanted, clip.frames, strict=True):
            expected = np.rot90(reference.rgb(number), round(reference.frames[number].rotation / 90) % 4)
            if expected.shape == clip.frames.shape[1:]:
                np.testing.assert_array_equal(pixels, expected, err_msg=f"frame {number}")
    else:
        assert clip.frames.shape[1:3] == (info.height, info.width)

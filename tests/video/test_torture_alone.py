"""Two requests that return a frame of one time return the same picture: one case per file.

The files of ``../shared/data/torture``, of ``../shared/cases``, of ``TUBELET_VIDEOS`` and ``TUBELET_CASES``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from support.cases import CASES, listed_cases
from support.video import alone_equal, listed_videos, make_video
from tubelet.video import Limits

# Larger files take seconds each to decode some dozen times: they run with the slow tests.
_SMALL_BYTES = 16_000


def cases() -> Iterator[ParameterSet]:
    """Files that may be videos, whether they decode or not."""
    for video in listed_videos():
        size_bytes = video.path.stat().st_size
        pixels = video.pixels or 1
        # Every frame at least twice: 4K in full is left to the tests of single frames.
        if pixels < 3840 * 2160:
            slow = size_bytes > _SMALL_BYTES or pixels > 640 * 480
            yield pytest.param(video.path, id=video.path.name, marks=[pytest.mark.slow] if slow else [])
    for row in listed_cases():
        if row["job"] == "decode" and "alone=" not in row["right"]:
            path = CASES / row["path"]
            slow = path.stat().st_size > _SMALL_BYTES
            yield pytest.param(path, id=row["path"], marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("path", cases())
def test_a_frame_alone_is_that_of_a_larger_request(path: Path) -> None:
    assert not alone_equal(path, count=8, limits=Limits(deadline_s=300))


# Each disagreed once: a decoder used again, one that had learnt nothing of the stream, a frame lost without
# an error, a frame that was held while the next ones were decoded.
FAST_SEEDS = {46, 62, 67, 108}
# There frames keep the numbers of their packets, too.
BY_NUMBER = {20, 67}
FUZZ_SEEDS = [
    pytest.param(seed, marks=[] if seed in FAST_SEEDS else [pytest.mark.slow]) for seed in range(121)
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", FUZZ_SEEDS)
def test_fuzzed_files(tmp_path: Path, seed: int) -> None:
    """Bits flipped, a stretch lost or doubled: whatever decodes is the same however it is asked for."""
    draw = np.random.default_rng(seed)
    x265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:bframes=2"}
    kinds = [
        ("a.mp4", {"options": {"preset": "veryfast", "bf": "2"}}),
        ("a.mkv", {"options": {"preset": "veryfast", "bf": "2"}}),
        ("a.ts", {"options": {"preset": "veryfast", "bf": "2"}}),
        ("b.mkv", {"codec": "libx265", "options": x265}),
        ("b.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
        ("b.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("b.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("c.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    ]
    name, shape = kinds[seed % len(kinds)]
    data = bytearray(make_video(tmp_path / name, frames=48, size=(96, 64), gop=12, **shape).read_bytes())
    if seed // len(kinds) % 2:
        for at in draw.integers(len(data) // 10, len(data) * 9 // 10, 12):
            data[at] ^= 1 << int(draw.integers(8))
    else:
        begin = int(draw.integers(len(data) // 10, len(data) * 8 // 10))
        data[begin : begin + 188 * int(draw.integers(1, 4))] = b""
    assert not alone_equal(bytes(data), count=24, by_index=seed in BY_NUMBER)

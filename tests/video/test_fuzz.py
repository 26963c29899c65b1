"""Mutated files: as many answers as files, no crash here, no leak, no orphan."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.video import make_video
from tubelet.video import DecodeError, Limits, Sandbox, ShortSide, Uniform, View

VIEWS = [View(Uniform(4), ShortSide(32, 32))]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    x264 = {"preset": "veryfast", "bf": "2"}
    shapes = {
        "a.mp4": {"options": x264},
        "b.mkv": {"options": x264},
        "c.ts": {"options": x264},
        "d.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
        "e.mp4": {
            "codec": "libx265",
            "options": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"},
        },
        "f.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
        "g.mp4": {"options": x264, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    }
    return [
        make_video(folder / name, frames=24, size=(96, 64), **shape).read_bytes()
        for name, shape in shapes.items()
    ]


def mutated(seeds: list[bytes], number: int) -> bytes:
    """A broken copy of a seed: flipped bits, a cut, another file's head, or a lost or doubled stretch."""
    draw = np.random.default_rng(number)
    data = bytearray(seeds[number % len(seeds)])
    kind = number // len(seeds) % 5
    if kind == 0:
        for at in draw.integers(0, len(data), draw.integers(1, 40)):
            data[at] ^= 1 << int(draw.integers(8))
    elif kind == 1:
        del data[int(draw.integers(1, len(data))) :]
    elif kind == 2:
        other = seeds[int(draw.integers(len(seeds)))]
        cut = int(draw.integers(16, 2048))
        data[:cut] = other[:cut]
    elif kind == 3:
        begin, size = int(draw.integers(len(data))), int(draw.integers(1, 4096))
        data[begin : begin + size] = b"" if draw.random() < 0.5 else data[begin : begin + size] * 2
    else:  # numbers of the index, the sizes most of all
        head = min(len(data), 1500)
        for base in (0, len(data) - head):
            for at in draw.integers(base, base + head, 6):
                data[at] = int(draw.choice([0, 1, 127, 128, 255]))
    return bytes(data)


def fuzz(seeds: list[bytes], count: int, limits: Limits) -> Counter[str]:
    """The outcome of ``count`` files."""
    outcomes: Counter[str] = Counter()
    with Sandbox(limits) as box:
        for number in range(count):
            data = mutated(seeds, number)
            try:
                box.probe(data)
                decoded = box.decode_views(data, VIEWS)
                outcomes["ok" if decoded.error is None else decoded.error.code] += 1
            except DecodeError as error:
                outcomes[error.code] += 1
    return outcomes


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_hundred_broken_files(seeds: list[bytes]) -> None:
    before = children()
    outcomes = fuzz(seeds, 100, Limits(deadline_s=10, memory_bytes=1 << 30))
    assert outcomes.total() == 100
    assert len(outcomes) >= 3, outcomes
    assert children() <= before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_broken_files(seeds: list[bytes], tmp_path: Path) -> None:
    count = int(os.environ.get("TUBELET_FUZZ", "2000"))
    limits = Limits(deadline_s=10, memory_bytes=1 << 30)
    before = children()
    fuzz(seeds, 50, limits)  # what loads once is loaded
    resident = psutil.Process().memory_info().rss
    outcomes = fuzz(seeds, count, limits)
    print(outcomes)
    assert outcomes.total() == count
    assert psutil.Process().memory_info().rss - resident < 64 << 20
    assert children() <= before

"""What training copies are worth: random dense clips of long-GOP originals, and of their copies.

Two videos are made, 1280x720 with a keyframe every 250 frames: ``film`` moves softly and is light to decode,
``grain`` is the same with noise in every frame, as a camera gives in the dark. The time is processor time of
all threads, of the same frames from either file to the same size, in turns; ``psnr_db`` compares the pictures
from the one with those from the other.

Example: python -m tubelet_jobs.benches.copies 18 23
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from tubelet.video import CopySpec, Dense, Random, ShortSide, View, decode_views, transcode

from tubelet_jobs.benches.decode_corpus import Recipe, pictures

_ORIGINAL = Recipe("original", "h264", "libx264", 1280, 720, gop=250, frames=600)
_GRAIN = {"film": 0.0, "grain": 8.0}
_CLIPS = {"dense32x2": (32, 2), "dense16x4": (16, 4)}
_SIDE = 224
_ROUNDS = 24

Pixels = npt.NDArray[np.uint8]


def measure(crfs: list[int]) -> Iterator[dict[str, Any]]:
    """One row per video, quality and kind of clip; ratios are of the sums over all rounds."""
    with tempfile.TemporaryDirectory(prefix="tubelet-bench-") as name:
        for video, grain in _GRAIN.items():
            original = Path(name) / f"{video}.mp4"
            _make(original, grain)
            for crf in crfs:
                spec = CopySpec(crf=crf)
                copy = Path(name) / f"{video}-crf{crf}.mp4"
                with transcode(str(original), spec).file as made, copy.open("wb") as out:
                    shutil.copyfileobj(made, out)
                size = copy.stat().st_size / original.stat().st_size
                what = {"bench": "copies", "video": video, "gop": spec.gop, "crf": crf, "size_ratio": size}
                for clip in _CLIPS:
                    yield {**what, "sampling": clip, **_compare(original, copy, clip)}


def _make(path: Path, grain: float) -> None:
    draw = np.random.default_rng(3)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream(_ORIGINAL.encoder, rate=30, options=_ORIGINAL.options)
        stream.width, stream.height, stream.pix_fmt = _ORIGINAL.width, _ORIGINAL.height, "yuv420p"
        stream.codec_context.gop_size = _ORIGINAL.gop
        for picture in pictures(_ORIGINAL.width, _ORIGINAL.height, _ORIGINAL.frames):
            noise = draw.normal(0, grain, (*picture.shape[:2], 1)).astype(np.float32) if grain else 0
            noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        container.mux(stream.encode(None))


def _compare(original: Path, copy: Path, clip: str) -> dict[str, Any]:
    draw, spent_s, errors = np.random.default_rng(0), {original: 0.0, copy: 0.0}, []
    for number in range(-1, _ROUNDS):
        view = View(Dense(*_CLIPS[clip], Random(float(draw.random()))), ShortSide(_SIDE, _SIDE))
        found: dict[Path, Pixels] = {}
        for path in (original, copy) if number % 2 else (copy, original):
            begin_s = time.process_time()
            found[path] = decode_views(str(path), [view]).clips[0].frames
            if number >= 0:  # the round before the first warms up
                spent_s[path] += time.process_time() - begin_s
        errors.append(float(np.square(found[copy].astype(np.float32) - found[original]).mean()))
    return {
        "original_ms": round(1000 * spent_s[original] / _ROUNDS, 1),
        "copy_ms": round(1000 * spent_s[copy] / _ROUNDS, 1),
        "ratio": round(spent_s[original] / spent_s[copy], 2),
        "psnr_db": round(float(10 * np.log10(255**2 / np.mean(errors))), 1),
    }


if __name__ == "__main__":
    for row in measure([int(word) for word in sys.argv[1:]] or [CopySpec().crf]):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

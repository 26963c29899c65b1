"""Small real videos, and folders of them, for the tests of the corpus."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping

import av
import numpy as np
from tubelet import storage

# Names that break naive URLs, globs and CSV: every one is a legal key.
ODD_NAMES = (
    "with space.mp4",
    "per%20cent.mp4",
    "hash#1.mp4",
    "what?.mp4",
    "a+b.mp4",
    "größe/日本語.mp4",
    "comma,quote'.mp4",
)


@functools.cache
def video_bytes(frames: int = 6, width: int = 64, height: int = 48, fps: int = 10, *, seed: int = 0) -> bytes:
    """An H.264 mp4 of coloured noise."""
    generator = np.random.default_rng(seed)
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": "3"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            picture = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def put(root: str, objects: Mapping[str, bytes]) -> None:
    """Write ``objects`` (path -> content) below ``root``."""
    for path, content in objects.items():
        storage.write_bytes(storage.join(root, path), content)


def put_videos(root: str, paths: Iterable[str]) -> None:
    """A small video at each path, each with a content of its own."""
    put(root, {path: video_bytes(seed=seed) for seed, path in enumerate(paths)})


def put_text(uri: str, *lines: str) -> str:
    """A text file; returns its URI."""
    storage.write_bytes(uri, ("\n".join(lines) + "\n").encode())
    return uri

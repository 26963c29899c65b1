"""Small real videos, and folders of them, for the tests of the corpus."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping
from typing import Any

import av
import numpy as np
from tubelet import storage
from tubelet.corpus.index import IndexConfig, IndexSummary, index_corpus
from tubelet.corpus.manifest import read_manifest

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


def picture_bytes() -> bytes:
    """One picture: a JPEG."""
    target = io.BytesIO()
    with av.open(target, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        grey = np.full((48, 64, 3), 127, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def run_index(src: str, out: str, **settings: Any) -> IndexSummary:
    """``tubelet index`` with one worker."""
    return index_corpus(IndexConfig(src=src, out=out, workers=1, **settings))


def manifest_rows(out: str) -> dict[str, dict[str, Any]]:
    """The rows of a manifest by path."""
    return {row["path"]: row for row in read_manifest(out).to_pylist()}


def counts(summary: IndexSummary) -> tuple[int, ...]:
    """``objects, ok, errors, probed, unchanged, removed``."""
    return (
        summary.objects,
        summary.ok,
        summary.errors,
        summary.probed,
        summary.unchanged,
        summary.removed,
    )

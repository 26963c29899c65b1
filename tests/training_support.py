"""Small real videos and their manifest, for the tests of clips and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from pipeline.corpus.manifest import key_of, schema_with, write_manifest


def write_video(path: Path, frames: np.ndarray, codec: str = "libx264", fps: int = 10) -> None:
    """uint8 ``(T, H, W, 3)`` to a video file of the kind the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def moving_square(direction: int, start: int, frames: int = 16, side: int = 48) -> np.ndarray:
    """A bright square that moves left (-1) or right (1), wrapping around: no single frame tells which."""
    clip = np.full((frames, side, side, 3), 40, np.uint8)
    for t in range(frames):
        columns = (np.arange(12) + start + 3 * direction * t) % side
        clip[t, 16:32, columns] = 220
    return clip


def write_corpus(
    folder: Path, splits: Mapping[str, int], *, broken: Sequence[int] = (), codec: str = "libx264"
) -> str:
    """``splits``: videos of each split, half of them 'left', half 'right'; returns the manifest's path.

    ``broken``: which of the training videos are bytes that no decoder can read although the manifest says ok.
    """
    rows: list[dict[str, Any]] = []
    for split, count in splits.items():
        for i in range(count):
            label, direction = [("left", -1), ("right", 1)][i % 2]
            path = folder / "videos" / split / f"{label} {i:02d}.mp4"
            write_video(path, moving_square(direction, 5 * i), codec)
            if split == "train" and i in broken:
                path.write_bytes(b"\x00" * 512)
            rows.append(_row(path, folder / "videos", label, split))
    schema = schema_with()
    table = pa.Table.from_pylist([{**dict.fromkeys(schema.names), **row} for row in rows], schema)
    manifest = folder / "manifest"
    write_manifest(table, str(manifest))
    return str(manifest)


def _row(path: Path, root: Path, label: str, split: str) -> dict[str, Any]:
    relative = path.relative_to(root).as_posix()
    return {
        "key": key_of(relative),
        "segment": 0,
        "uri": str(path),
        "path": relative,
        "etag": f"{path.stat().st_mtime_ns}-{path.stat().st_size}",
        "size": path.stat().st_size,
        "status": "ok",
        "label": label,
        "split": split,
        "frames": 16,
    }

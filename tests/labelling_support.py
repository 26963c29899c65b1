"""What the labelling tests share: tiny videos, a tiny model, plain readers of an output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import duckdb
import numpy as np
import pyarrow as pa
import torch

from pipeline.clips import ClipSpec
from pipeline.corpus import storage
from pipeline.models import ModelBundle
from pipeline.vivit import ViViT, ViViTConfig

CLASSES = ["left", "right", "up", "down"]


def write_video(
    path: Path, seed: int, *, frames: int = 12, size: int = 48, fps: int = 10, fast: bool = False
) -> Path:
    """A small H.264 file whose colours and motion come from ``seed``; ``fast``: its index first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    colour, speed = draw.integers(40, 215, 3), draw.uniform(0.5, 3, 2)
    y, x = np.mgrid[0:size, 0:size]
    options = {"movflags": "faststart"} if fast else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "28"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            wave = np.sin((x * speed[0] + y * speed[1] + i * 9 * speed[0]) / 7)
            image = np.clip(colour[None, None] + 60 * wave[..., None], 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_corpus(folder: Path, count: int, broken: Sequence[int] = ()) -> Path:
    """``count`` videos ``v00000.mp4`` on; those in ``broken`` are garbage."""
    for i in range(count):
        path = folder / f"v{i:05d}.mp4"
        if i in broken:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no video " * 40)
        else:
            write_video(path, i)
    return folder


def tiny_bundle(folder: Path, *, seed: int = 0, heads: dict[str, int] | None = None, **changes: Any) -> Path:
    """A random model that tells its inputs apart, saved below ``folder``."""
    classes = {"heads_classes": heads} if heads else {"classes": len(CLASSES)}
    config = ViViTConfig.preset("tiny-16x2-model1", **classes, **changes)
    torch.manual_seed(seed)
    model = ViViT(config)
    torch.nn.init.normal_(model.head.weight, std=4.0 / math.sqrt(config.dim))
    labels = (
        {head: [f"{head}-{i}" for i in range(n)] for head, n in heads.items()}
        if heads
        else {"label": CLASSES}
    )
    spec = ClipSpec(frames=config.frames, stride=None, size=config.height, tubelet=config.tubelet)
    ModelBundle(model.eval(), labels, spec).save(folder)
    return folder


def read_rows(uri: str) -> list[dict[str, Any]]:
    """All rows at the root of an output, by key and window, as a plain Parquet reader sees them."""
    filesystem, path = storage.filesystem(uri)
    import pyarrow.dataset as ds

    table = ds.dataset(path, filesystem=filesystem, format="parquet").to_table()
    rows: list[dict[str, Any]] = table.sort_by([("key", "ascending"), ("window", "ascending")]).to_pylist()
    return rows


def read_with_duckdb(folder: str, columns: str = "*") -> pa.Table:
    """A local output as DuckDB reads it."""
    return duckdb.sql(f"select {columns} from '{folder}/*.parquet' order by key, \"window\"").to_arrow_table()


def assert_one_row_each(rows: list[dict[str, Any]], count: int) -> None:
    """Exactly ``count`` rows, no place twice."""
    places = [(row["key"], row["window"]) for row in rows]
    assert len(set(places)) == len(places), "a place stands there twice"
    assert len(places) == count

"""What the labelling tests share: tiny videos, a tiny model, plain readers of an output."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
import tubelet
from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.inference.bundle import ModelBundle
from tubelet.video import decode_views
from tubelet.vivit import ViViT, ViViTConfig

CLASSES = ["left", "right", "up", "down"]


def write_video(
    path: Path, seed: int, *, frames: int = 12, size: int = 48, fps: int = 10, fast: bool = False
) -> Path:
    """A small H.264 file whose colours and motion come from ``seed``; ``fast``: its index first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if fast else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "28"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for image in pictures(seed, frames, size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_scenes(path: Path, scenes: Sequence[tuple[int, int]], *, size: int = 48, fps: int = 10) -> Path:
    """One video of several scenes, each ``(seed, frames)`` and as :func:`write_video` draws it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "28"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for seed, frames in scenes:
            for image in pictures(seed, frames, size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def pictures(seed: int, frames: int, size: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Frames uint8 ``(size, size, 3)`` of a wave; its colour, direction and speed come from ``seed``."""
    draw = np.random.default_rng(seed)
    colour, speed = draw.integers(40, 215, 3), draw.uniform(0.5, 3, 2)
    y, x = np.mgrid[0:size, 0:size]
    for i in range(frames):
        wave = np.sin((x * speed[0] + y * speed[1] + i * 9 * speed[0]) / 7)
        yield np.clip(colour[None, None] + 60 * wave[..., None], 0, 255).astype(np.uint8)


def fitted_bundle(folder: Path, seeds: Sequence[int]) -> Path:
    """A model whose head was fitted, by least squares on its own features, to tell scenes apart."""
    config = ViViTConfig.preset("tiny-16x2-model1", classes=len(seeds))
    torch.manual_seed(0)
    model = ViViT(config).eval()
    spec = ClipSpec(frames=config.frames, stride=None, size=config.height, tubelet=config.tubelet)
    clips, targets = [], []
    for number, seed in enumerate(seeds):
        path = write_scenes(folder / "scenes" / f"{seed}.mp4", [(seed, 60)])
        for start_s in np.arange(0, 4, 0.25):
            decoded = decode_views(str(path), spec.test_views(), window_s=(start_s, start_s + 2))
            clips.append(torch.from_numpy(decoded.clips[0][0]))
            targets.append(number)
    with torch.inference_mode():
        features = model(torch.stack(clips), features=True)[1]
    wanted = 10 * torch.nn.functional.one_hot(torch.tensor(targets)).float()
    inputs = torch.cat((features, torch.ones(len(features), 1)), dim=1)
    solved = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution
    with torch.no_grad():
        model.head.weight.copy_(solved[:-1].T)
        model.head.bias.copy_(solved[-1])
    ModelBundle(model, {"label": [f"scene {seed}" for seed in seeds]}, spec).save(folder)
    return folder


def write_corpus(
    folder: Path, count: int, broken: Sequence[int] = (), *, distinct: int | None = None
) -> Path:
    """``count`` videos ``v00000.mp4`` on; those in ``broken`` are garbage.

    Args:
        distinct: from this one on they are links to the first ones, in turn; None: each is its own.
    """
    for i in range(count):
        path = folder / f"v{i:05d}.mp4"
        if i in broken:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no video " * 40)
        elif distinct and i >= distinct:
            path.hardlink_to(folder / f"v{i % distinct:05d}.mp4")
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
    if not table.schema.names:  # nothing is published yet
        return []
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


def assert_as_alone(rows: list[dict[str, Any]], model: Path, videos: Path, distinct: int) -> None:
    """Labels and scores of :func:`write_corpus`'s videos are those that this process finds by itself."""
    with tubelet.load(str(model)) as alone:
        wanted = alone.predict([str(videos / f"v{number:05d}.mp4") for number in range(distinct)])
    for row in rows:
        one = wanted[int(re.findall(r"v(\d+)\.mp4", row["uri"])[0]) % distinct]
        assert row["label"] == one["label"]
        assert row["score"] == pytest.approx(one["score"], abs=1e-5)

"""On a Ray cluster with workers these look into the videos, and the head does not."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import S3Bucket
from support.cluster import ray_head
from support.corpus import manifest_rows, put, put_videos, video_bytes
from support.s3_proxy import s3_proxy
from tubelet.corpus import index, probing_on_ray
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.decode_limits import DecodeLimits
from tubelet.storage import DEFAULT_OPTIONS

pytestmark = pytest.mark.slow

DELAYED_OBJECTS = int(os.environ.get("TUBELET_DELAYED_OBJECTS", "800"))


@pytest.fixture
def cluster() -> Iterator[Any]:
    with ray_head(2) as made:
        yield made


@pytest.fixture
def probers(monkeypatch: pytest.MonkeyPatch) -> list[probing_on_ray.RayProber]:
    """Those that an index makes."""
    made: list[probing_on_ray.RayProber] = []

    def keep(*args: Any) -> Any:
        prober = probing_on_ray.cluster_prober(*args)
        assert prober is not None
        made.append(prober)
        return prober

    monkeypatch.setattr(index, "cluster_prober", keep)
    return made


def test_no_video_is_opened_on_the_head(
    cluster: Any, probers: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    head = ray.get_runtime_context().get_node_id()
    assert probing_on_ray.cluster_prober(DEFAULT_OPTIONS, DecodeLimits().limits(), None) is None
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setattr(probing_on_ray, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(probing_on_ray, "_WAVE_ROWS", 16)
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, [f"{i:02d}.mp4" for i in range(30)])
    put(src, {"bad.mp4": b"broken", "a.txt": b"text"})
    summary = index_corpus(IndexConfig(src=src, out=out, split="train=1"))
    assert (summary.ok, summary.errors, summary.not_video, summary.probed) == (30, 1, 1, 32)
    assert probers[0].by_node.total() == 32
    assert head not in probers[0].by_node
    on_cluster = manifest_rows(out)
    monkeypatch.setattr(index, "cluster_prober", lambda *_: None)
    index_corpus(IndexConfig(src=src, out=str(tmp_path / "n"), split="train=1"))
    for path, row in manifest_rows(str(tmp_path / "n")).items():
        assert row | {"indexed_at": None} == on_cluster[path] | {"indexed_at": None}


def test_hashes_are_made_on_the_nodes(cluster: Any, probers: list[Any], tmp_path: Path) -> None:
    import ray

    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    src = tmp_path / "v"
    put_videos(str(src), [f"{i:02d}.mp4" for i in range(6)])
    shutil.copy(src / "00.mp4", src / "copy.mp4")
    put(str(src), {"bad.mp4": b"broken"})
    found = index_corpus(
        IndexConfig(src=str(src), out=str(tmp_path / "m"), split="train=1", duplicates="near")
    )
    assert (found.ok, found.duplicates) == (7, 1)
    assert not [warning for warning in found.warnings if "could not be looked at" in warning]
    assert [prober.by_node.total() for prober in probers] == [8, 7]
    assert all(ray.get_runtime_context().get_node_id() not in prober.by_node for prober in probers)
    marks = {path: row["duplicate_of"] for path, row in manifest_rows(str(tmp_path / "m")).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "cluster_prober", lambda *_: None)
        index_corpus(
            IndexConfig(src=str(src), out=str(tmp_path / "n"), split="train=1", duplicates="near", workers=1)
        )
    assert marks == {path: row["duplicate_of"] for path, row in manifest_rows(str(tmp_path / "n")).items()}


def test_four_workers_on_three_nodes_share_the_waiting(
    s3: S3Bucket, probers: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store that takes 50 ms for each answer one worker waits most of its time.

    How long each takes is printed: that is the machine's. Both are measured alike, after some objects that
    start the workers.
    """
    put(f"{s3.uri}/warm", {f"{number:03d}.mp4": video_bytes() for number in range(32)})
    put(f"{s3.uri}/v", {f"{number:04d}.mp4": video_bytes() for number in range(DELAYED_OBJECTS)})
    seconds: dict[int, float] = {}
    with s3_proxy(s3.server) as proxy:
        proxy.delay_s = 0.05
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with ray_head(0) as cluster:
            for _ in range(3):
                cluster.add_node(num_cpus=2)
            cluster.wait_for_nodes()
            for workers, src in ((1, "warm"), (1, "v"), (4, "warm"), (4, "v")):
                began_s = time.monotonic()
                out = f"{s3.uri}/{src}-{workers}"
                found = index_corpus(
                    IndexConfig(src=f"{s3.uri}/{src}", out=out, workers=workers, split="train=1")
                )
                seconds[workers] = round(time.monotonic() - began_s, 1)
                objects = 32 if src == "warm" else DELAYED_OBJECTS
                assert found.probed == found.ok == objects
                assert len({row["key"] for row in manifest_rows(out).values()}) == objects
                assert probers[-1].by_node.total() == objects
    by_node = list(probers[-1].by_node.values())
    ratio = round(seconds[1] / seconds[4], 2)
    figures = {"objects": DELAYED_OBJECTS, "seconds": seconds, "ratio": ratio, "by_node": by_node}
    with capsys.disabled():
        print(json.dumps(figures))
    assert len(by_node) == 3
    assert min(by_node) >= DELAYED_OBJECTS // 10, "every node has its share"

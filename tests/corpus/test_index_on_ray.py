"""On a Ray cluster with workers these look into the videos, and the head does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.corpus import manifest_rows, put, put_videos
from tubelet.corpus import index, probing_on_ray
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.decode_limits import DecodeLimits
from tubelet.storage import DEFAULT_OPTIONS

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_no_video_is_opened_on_the_head(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    head = ray.get_runtime_context().get_node_id()
    assert probing_on_ray.cluster_prober(DEFAULT_OPTIONS, DecodeLimits().limits(), None) is None
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    made: list[probing_on_ray.RayProber] = []

    def keep(*args: Any) -> Any:
        prober = probing_on_ray.cluster_prober(*args)
        assert prober is not None
        made.append(prober)
        return prober

    monkeypatch.setattr(index, "cluster_prober", keep)
    monkeypatch.setattr(probing_on_ray, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(probing_on_ray, "_WAVE_ROWS", 16)
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, [f"{i:02d}.mp4" for i in range(30)])
    put(src, {"bad.mp4": b"broken", "a.txt": b"text"})
    summary = index_corpus(IndexConfig(src=src, out=out, split="train=1"))
    assert (summary.ok, summary.errors, summary.not_video, summary.probed) == (30, 1, 1, 32)
    assert made[0].by_node.total() == 32
    assert head not in made[0].by_node
    on_cluster = manifest_rows(out)
    monkeypatch.setattr(index, "cluster_prober", lambda *_: None)
    index_corpus(IndexConfig(src=src, out=str(tmp_path / "n"), split="train=1"))
    for path, row in manifest_rows(str(tmp_path / "n")).items():
        assert row | {"indexed_at": None} == on_cluster[path] | {"indexed_at": None}

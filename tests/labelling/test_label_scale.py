"""Memory of the driver and of the object store does not grow with the corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
import ray
from support.labelling import tiny_bundle, write_video
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import key_of, read_manifest, write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

FEW, MANY = 1_000, 100_000
DISTINCT = 20


@dataclass(frozen=True)
class Use:
    """What a job took at most."""

    driver_bytes: int
    object_store_bytes: int
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The manifest of a few small videos."""
    folder = tmp_path_factory.mktemp("originals")
    for i in range(DISTINCT):
        write_video(folder / "in" / f"{i}.mp4", i, frames=6, size=32)
    index_corpus(IndexConfig(src=str(folder / "in"), out=str(folder / "manifest")))
    return read_manifest(str(folder / "manifest"))


def _manifest(originals: pa.Table, folder: Path, count: int) -> str:
    """A manifest of ``count`` objects: links to the originals, each with a path of its own."""
    (folder / "in").mkdir(parents=True)
    paths = [f"a/rather/long/name/as/buckets/have/v{i:07d}.mp4" for i in range(count)]
    uris = []
    for i, name in enumerate(paths):
        uris.append(str(folder / "in" / name.rpartition("/")[2]))
        os.link(originals["uri"][i % DISTINCT].as_py(), uris[-1])
    table = originals.take(pa.array([i % DISTINCT for i in range(count)]))
    for column, values in {"key": map(key_of, paths), "path": paths, "uri": uris}.items():
        table = table.set_column(table.column_names.index(column), column, pa.array(list(values)))
    write_manifest(table, str(folder / "manifest"))
    return str(folder / "manifest")


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Ray of its own."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 1 << 30})
    ray.init(address=made.address, log_to_driver=False)
    yield made.address
    ray.shutdown()
    made.shutdown()


def _in_object_store() -> int:
    total, free = ray.cluster_resources(), ray.available_resources()
    return int(total["object_store_memory"] - free.get("object_store_memory", 0))


def _label(manifest: str, folder: Path, address: str, *more: str, **model: Any) -> Use:
    tubelet = str(Path(sys.executable).with_name("tubelet"))
    command = [tubelet, "label", manifest, "--model", str(tiny_bundle(folder / "model", **model))]
    command += ["--out", str(folder / "out"), "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--ray-address", address, *more]
    driver = store = 0
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        while process.poll() is None:
            driver = max(driver, psutil.Process(process.pid).memory_info().rss)
            store = max(store, _in_object_store())
            time.sleep(0.5)
    assert process.stdout is not None
    assert process.returncode == 0, (folder / "log").read_text()[-3000:]
    return Use(driver, store, json.loads(process.stdout.read().splitlines()[-1]))


def _check(folder: Path, use: Use, count: int) -> None:
    rows = ds.dataset(str(folder / "out"), format="parquet").to_table(columns=["key", "status"])
    assert rows.num_rows == pc.count_distinct(rows["key"]).as_py() == count
    assert pc.unique(rows["status"]).to_pylist() == ["ok"]
    print(
        f"{count} objects: driver {use.driver_bytes / 2**20:.0f} MiB, object store "
        f"{use.object_store_bytes / 2**20:.1f} of {use.summary['object_store_limit_bytes'] / 2**20:.0f} MiB, "
        f"{use.summary['videos_per_s']:.0f} videos/s"
    )
    assert 0 < use.object_store_bytes <= use.summary["object_store_limit_bytes"]


def test_memory_from_a_thousand_to_a_hundred_thousand(
    originals: pa.Table, cluster: str, tmp_path: Path
) -> None:
    used = []
    for count in (FEW, MANY):
        folder = tmp_path / str(count)
        used.append(_label(_manifest(originals, folder, count), folder, cluster, "--workers", "2"))
        _check(folder, used[-1], count)
    assert used[0].summary["object_store_limit_bytes"] == used[1].summary["object_store_limit_bytes"]
    assert used[1].driver_bytes < 1.15 * used[0].driver_bytes


def test_clips_on_their_way_to_predictors_are_bounded(
    originals: pa.Table, cluster: str, tmp_path: Path
) -> None:
    """Decoding is faster than the model here: clips must wait in the decoders, not in the object store."""
    used = []
    for count in (500, 4_000):
        folder = tmp_path / str(count)
        manifest = _manifest(originals, folder, count)
        used.append(_label(manifest, folder, cluster, "--predictors", "1", "--workers", "1", layers=24))
        _check(folder, used[-1], count)
    assert used[0].summary["object_store_limit_bytes"] == used[1].summary["object_store_limit_bytes"]

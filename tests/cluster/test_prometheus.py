"""The dashboard's queries have answers from a real Prometheus that scraped a label job's Ray."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from support import free_port, wait_until
from support.cluster import dashboard_queries, ray_head
from support.labelling import tiny_bundle, write_corpus

VIDEOS, GONE = 300, 3


@contextmanager
def _prometheus(folder: Path, targets: list[str]) -> Iterator[str]:
    """Debian's Prometheus, which asks ``targets`` every second; gives its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("there is no Prometheus: apt-get install prometheus")
    ray_nodes = {"targets": targets, "labels": {"ray_io_cluster": "here"}}
    config = {"scrape_configs": [{"job_name": "ray", "static_configs": [ray_nodes]}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, **config}))
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *flags, f"--web.listen-address={address}"], stdout=log, stderr=log
        )
    try:
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def _values(prometheus: str, query: str) -> list[float]:
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            found = json.load(reply)["data"]["result"]
    except OSError:
        return []  # not up yet
    return [float(one["value"][1]) for one in found]


@pytest.mark.slow
def test_every_query_of_the_dashboard_has_an_answer(tmp_path: Path) -> None:
    videos = write_corpus(tmp_path / "videos", VIDEOS)
    model = tiny_bundle(tmp_path / "model")
    tubelet = str(Path(sys.executable).with_name("tubelet"))
    subprocess.run([tubelet, "index", videos, "--out", tmp_path / "manifest"], check=True, timeout=300)
    for number in range(GONE):
        (videos / f"v{number:05d}.mp4").unlink()
    size_bytes = sum(path.stat().st_size for path in videos.iterdir())
    command = [tubelet, "label", tmp_path / "manifest", "--model", model, "--out", tmp_path / "out"]
    command += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--ray-address"]
    with ray_head(2, metrics_report_interval_ms=1000) as cluster:
        targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
        with _prometheus(tmp_path, targets) as prometheus:
            totals = _label(prometheus, [*command, cluster.address], tmp_path / "label.log")
    assert totals["clips"] == VIDEOS - GONE
    # What is gone is looked for once more at the end of the job.
    assert totals["videos"] == VIDEOS + GONE
    assert totals["errors"] == 2 * GONE
    assert totals["bytes"] >= size_bytes / 2


def _label(prometheus: str, command: list[Any], log: Path) -> dict[str, float]:
    """Run the job until all queries have had an answer; its totals at the end."""
    queries, answered = dashboard_queries(), set[str]()

    def all_answered() -> bool:
        answered.update(name for name, query in queries.items() if _values(prometheus, query))
        return len(answered) == len(queries)

    with log.open("w") as file:
        job = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            wait_until(lambda: all_answered() or job.poll() is not None, 300)
            assert job.wait(300) == 0, log.read_text()[-3000:]
        finally:
            job.kill()
    names, wanted = ("videos", "clips", "bytes", "errors"), VIDEOS - GONE

    def totals() -> dict[str, float]:
        return {name: sum(_values(prometheus, f"ray_tubelet_{name}_total")) for name in names}

    wait_until(lambda: all_answered() and totals()["clips"] >= wanted, 60)
    assert answered == set(queries), set(queries) - answered
    return totals()

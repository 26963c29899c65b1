"""Thousands of real objects: an index that is killed half-way goes on, and looks into nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from support import S3Bucket
from support.corpus import video_bytes
from tubelet import storage
from tubelet.corpus.manifest import read_manifest

pytestmark = pytest.mark.slow

OBJECTS = int(os.environ.get("TUBELET_SCALE_OBJECTS", "20000"))


def _staged(out: str) -> list[tuple[str, str]]:
    """Keys and etags of the verdicts that lie beside the manifest."""
    found: list[tuple[str, str]] = []
    for name in storage.list_names(f"{out}/_staging"):
        if name.startswith("probed-"):
            filesystem, path = storage.filesystem(f"{out}/_staging/{name}")
            table = pq.read_table(path, filesystem=filesystem, columns=["key", "etag"])
            found += zip(table["key"].to_pylist(), table["etag"].to_pylist(), strict=True)
    return found


def _cpu_s(process: psutil.Process) -> float:
    """Of a process and its children, the ended ones too."""
    times = process.cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    living = [child.cpu_times() for child in process.children(recursive=True)]
    return own + sum(one.user + one.system for one in living)


def test_killed_half_way_and_resumed(s3: S3Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    import boto3

    client, video = boto3.client("s3"), video_bytes()

    def put(number: int) -> None:
        key = f"{s3.prefix}/v/class-{number % 10}/{number:06d}.mp4"
        client.put_object(Bucket=s3.bucket, Key=key, Body=video)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(OBJECTS)))
    src, out = f"{s3.uri}/v", f"{s3.uri}/m"
    command = [sys.executable, "-m", "tubelet_jobs", "index", src, "--out", out, "--labels", "folders"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(_staged(out)) < OBJECTS // 2:
        assert first.poll() is None
        time.sleep(1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = set(_staged(out))
    assert OBJECTS // 2 <= len(before) < OBJECTS
    began_s = time.monotonic()
    second = subprocess.Popen([*command, "--break-lock"], stdout=subprocess.PIPE, start_new_session=True)
    watched, cpu_s, staged = psutil.Process(second.pid), 0.0, before
    while second.poll() is None:
        try:
            cpu_s = max(cpu_s, _cpu_s(watched))
        except psutil.Error:
            break
        time.sleep(0.5)
    wall_s = time.monotonic() - began_s
    answer, _ = second.communicate()
    assert second.returncode == 0
    summary: dict[str, Any] = json.loads(answer.splitlines()[-1])
    assert summary["unchanged"] == len(staged), "what was looked into is not looked into again"
    assert summary["probed"] == OBJECTS - len(staged)
    table = read_manifest(out)
    assert table.num_rows == len(set(table["key"].to_pylist())) == OBJECTS
    assert set(table["status"].to_pylist()) == {"ok"}
    probed = summary["probed"]
    figures = {
        "probed": probed,
        "cpu_s_per_1000": round(1000 * cpu_s / probed, 2),
        "objects_per_s": round(probed / wall_s, 1),
        "share_of_cores": round(cpu_s / wall_s / (os.cpu_count() or 1), 2),
    }
    with capsys.disabled():
        print(json.dumps(figures))

"""A driver killed in the middle of a feature pass, and run again: no row is there twice, none is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import wait_until
from support.labelling import tiny_bundle, write_video
from tubelet.corpus.index import IndexConfig, index_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OBJECTS, CLIPS, KILLS = int(os.environ.get("TUBELET_KILL_OBJECTS", "600")), 2, 4


def rows_of(out: Path) -> pd.DataFrame:
    """All rows that a plain reader sees."""
    parts = sorted(out.glob("part-*.parquet"))
    columns = ["key", "window", "clip", "etag", "status", "frames"]
    if not parts:
        return pd.DataFrame(columns=columns)
    found = pd.concat([pd.read_parquet(part, columns=columns) for part in parts])
    assert not found.duplicated(["key", "window", "clip"]).any()
    return found.sort_values(["key", "window", "clip"], ignore_index=True)


def test_a_pass_that_is_killed_goes_on(tmp_path: Path) -> None:
    originals = [write_video(tmp_path / "originals" / f"{i}.mp4", i) for i in range(12)]
    for i in range(OBJECTS):
        target = tmp_path / "videos" / f"v{i:05d}.mp4"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(originals[i % 12], target)
        if i % 20 == 7:
            target.write_bytes(b"garbage " * 50)
    index_corpus(IndexConfig(src=str(tmp_path / "videos"), out=str(tmp_path / "manifest")))
    model = tiny_bundle(tmp_path / "model", variant="model2", tubelet=(1, 16, 16))
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}

    def start(out: Path) -> subprocess.Popen[str]:
        given = ["--model", str(model), "--out", str(out), "--clips", str(CLIPS), "--per-frame"]
        command = [sys.executable, "-m", "tubelet_jobs", "embed", str(tmp_path / "manifest"), *given]
        log = (tmp_path / f"{out.name}.log").open("a")
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)

    def finish(out: Path) -> dict[str, int]:
        process = start(out)
        text, _ = process.communicate(timeout=900)
        assert process.returncode == 0, (tmp_path / f"{out.name}.log").read_text()[-3000:]
        summary: dict[str, int] = json.loads(text.strip().splitlines()[-1])
        return summary

    whole, out = tmp_path / "undisturbed", tmp_path / "killed"
    summary = finish(whole)
    broken = OBJECTS // 20
    assert (summary["objects"], summary["ok"], summary["errors"]) == (OBJECTS, OBJECTS - broken, broken)
    wanted = rows_of(whole)
    assert len(wanted) == CLIPS * (OBJECTS - broken) + broken
    published, killed = [0], 0
    for _ in range(KILLS):
        process = start(out)
        wait_until(lambda p=process: len(rows_of(out)) > published[-1] or p.poll() is not None, 300)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        published.append(len(rows_of(out)))
    assert killed >= 2, "it was done before it could be killed: raise TUBELET_KILL_OBJECTS"
    assert published == sorted(published)
    after = finish(out)
    found = rows_of(out)
    print(
        f"killed {killed} times with {published} rows published; {after['embedded']} videos in the last run"
    )
    for name in ("key", "window", "clip", "etag", "status"):
        assert found[name].tolist() == wanted[name].tolist(), name
    good = found["status"] == "ok"
    values = [np.stack(rows["frames"][good]) for rows in (found, wanted)]
    np.testing.assert_allclose(*values, atol=1e-5)
    assert finish(out)["embedded"] == 0

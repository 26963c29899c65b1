"""`tubelet prepare` that is killed goes on: no copy is made twice, none is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import wait_until
from support.corpus import run_index
from support.labelling import write_corpus
from tubelet.copies.table import FOLDER, VIDEOS
from tubelet.corpus.manifest import read_manifest
from tubelet.video import probe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COUNT, BROKEN = 400, (7, 133, 391)


def _copies(out: Path) -> dict[Path, int]:
    """The copies, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in (out / VIDEOS).rglob("*.mp4")}


def _kill_at(count: int, command: list[str], out: Path) -> None:
    """Start the job, and kill it and its Ray once so many copies are there."""
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: job.poll() is not None or len(_copies(out)) >= count)
    assert job.poll() is None, "it came to its end first"
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


@pytest.mark.parametrize(
    "kills", [(COUNT // 4, COUNT // 2), (1, COUNT - 60)], ids=["half-way", "at the ends"]
)
def test_killed_and_resumed(
    kills: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = write_corpus(tmp_path / "videos", COUNT, broken=BROKEN)
    manifest, out = tmp_path / "manifest", tmp_path / "copies"
    run_index(str(videos), str(manifest))
    command = [sys.executable, "-m", "tubelet_jobs", "prepare", str(manifest), "--out", str(out)]
    command += ["--short-side", "32", "--gop", "4", "--workers", "2"]
    made: dict[Path, int] = {}
    for count in kills:
        _kill_at(count, command, out)
        for path, written_ns in _copies(out).items():
            assert made.setdefault(path, written_ns) == written_ns, "made again"
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=900)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ok = COUNT - len(BROKEN)
    assert (summary["objects"], summary["ok"], summary["errors"]) == (COUNT, ok, len(BROKEN))
    now = _copies(out)
    assert {path: now[path] for path in made} == made
    rows = read_manifest(str(out)).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows) == COUNT
    assert {Path(row["uri"]) for row in rows if row["status"] == "ok"} == set(now)
    assert len(now) == ok
    assert all(probe(str(path)).frames == 12 for path in list(now)[::20])
    assert not [name for name in os.listdir(out / FOLDER) if name.endswith(".tmp")]
    with capsys.disabled():
        print(f"killed at {kills}: {len(made)} copies, {summary['already_done']} rows were there; {ok} ok")

"""A folder as people have it, indexed and labelled by the real commands: no file goes uncounted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.corpus import ODD_NAMES, picture_bytes, put, put_videos
from support.labelling import read_rows, tiny_bundle
from tubelet.corpus.manifest import read_manifest

VIDEOS = (
    "validation/left/a.mp4",
    "training/left/b.mp4",
    "training/right/c.mp4",
    "testing/right/d.mp4",
    "eval/right/_vzHW3x.mp4",
    "training/right/_1W44j2lpIA_000000_000010.mp4",
    "training/right/no_extension",
    *(f"odd/{name}" for name in ODD_NAMES),
)
SIDECARS = {
    "training/left/b.srt": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "training/left/b.json": b'{"label": "left"}',
    "training/left/b.txt": b"left\n",
    "training/right/c.jpg": picture_bytes(),
    "notes.md": b"# notes\n",
    "labels-old.csv": b"file_name;label\nb.mp4;left\n",
}
BROKEN = {"training/left/broken.mp4": b"no video " * 40, "training/right/empty.mp4": b""}
SKIPPED = {
    ".hidden.mp4": b"x",
    "_tmp/e.mp4": b"x",
    "training/.cache/f.mp4": b"x",
    "_SUCCESS": b"",
}


def _tubelet(*args: str, status: int = 0) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("tubelet")), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == status, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _found(folder: Path) -> int:
    """What ``find`` counts."""
    done = subprocess.run(["find", folder, "-type", "f"], capture_output=True, text=True, check=True)
    return len(done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_counts_add_up_to_what_find_counts(tmp_path: Path) -> None:
    src = tmp_path / "videos"
    put_videos(str(src), VIDEOS)
    for files in (SIDECARS, BROKEN, SKIPPED):
        put(str(src), files)
    lines = ["File_Name,Label", "validation/left/a.mp4,left", "training/left/b.mp4,left", "odd/a+b.mp4,right"]
    (src / "labels.csv").write_text("\n".join(lines) + "\n", "utf-8")
    manifest, model = str(tmp_path / "manifest"), str(tiny_bundle(tmp_path / "model"))

    summary = _tubelet("index", str(src), "--out", manifest, "--labels", str(src / "labels.csv"))
    rows = read_manifest(manifest).to_pylist()
    assert summary["objects"] + summary["skipped"] == _found(src)
    assert summary["objects"] == summary["ok"] + summary["errors"] + summary["not_video"] == len(rows)
    assert (summary["ok"], summary["errors"]) == (len(VIDEOS), len(BROKEN))
    assert summary["not_video"] == len(SIDECARS)
    assert summary["skipped"] == len(SKIPPED) + 1  # the label file

    server = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--review-limit", "0")
    out = str(tmp_path / "predictions")
    labelled = _tubelet("label", manifest, "--model", model, "--out", out, *server)
    assert labelled["objects"] == len(VIDEOS) + len(BROKEN) == len(read_rows(out))
    assert (labelled["ok"], labelled["errors"]) == (len(VIDEOS), len(BROKEN))
    assert labelled["objects"] + summary["not_video"] + summary["skipped"] == _found(src)

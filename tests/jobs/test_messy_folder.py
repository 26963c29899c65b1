"""A folder as people have it, indexed and labelled by the real commands: no file goes uncounted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpus import ODD_NAMES, picture_bytes, put, put_videos, video_bytes
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


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tubelet")), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def _tubelet(*args: str) -> dict[str, Any]:
    done = _run(*args)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _found(folder: Path) -> int:
    """What ``find`` counts."""
    done = subprocess.run(["find", folder, "-type", "f", "-print0"], capture_output=True, check=True)
    return done.stdout.count(b"\0")


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


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
# Each label file names its columns in another way, and some of the videos.
LABEL_FILES = {
    "unicode.csv": f"path,label\nformats/1.mp4,{NFC}\nformats/2.mp4,{NFD}\n",
    "spaces.csv": 'PATH,Label\n"formats/3.mp4 ",run\n" formats/4.mp4 ",jump\n',
    "latin1.csv": f"File_Name,LABEL\nformats/{NFC}.mp4,run\nformats/5.mp4,jump\n",
    "file_name.csv": "file_name,label\nformats/6.mp4,run\nformats/7.mp4,jump\n",
    "filename.csv": "filename,label\nformats/8.mp4,run\nformats/9.mp4,jump\n",
    "video.csv": "video,label\nformats/10.mp4,run\nformats/11.mp4,jump\n",
    "video_path.csv": "video_path,label\nformats/12.mp4,run\nformats/13.mp4,jump\n",
    "table.json": '[{"path": "formats/14.mp4", "label": "run"}, {"path": "formats/15.mp4", "label": "jump"}]',
    "lines.jsonl": '{"path": "formats/16.mp4", "label": "run"}\n{"path": "formats/17.mp4", "label": "jump"}',
    "list.csv": "formats/18.mp4,run\nformats/19.mp4,jump\n",
}
# On the disk some names end with a space, and one is no UTF-8.
NAMES: dict[bytes, str] = {f"{number}.mp4".encode(): "run" for number in (6, 8, 10, 12, 14, 16, 18, 20)}
NAMES |= {f"{number}.mp4".encode(): "jump" for number in (4, 5, 7, 9, 11, 13, 15, 17, 19, 21)}
NAMES |= {b"1.mp4": NFC, b"2.mp4": NFC, b"3.mp4 ": "run", b"caf\xe9.mp4": "run"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_label_files_as_people_have_them(tmp_path: Path) -> None:
    src = tmp_path / "videos"
    (src / "formats").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        Path(os.fsdecode(os.fsencode(src / "formats") + b"/" + name)).write_bytes(video_bytes(seed=seed))
    for name, text in LABEL_FILES.items():
        (src / name).write_text(text, "utf-8")
    binary = {"path": [b"formats/20.mp4", b"formats/21.mp4"], "label": [b"run", b"jump"]}
    pq.write_table(pa.table(binary), src / "binary.parquet")
    manifest = str(tmp_path / "manifest")
    index = ["index", str(src), "--out", manifest]

    rows = [
        f"formats/{number}.mp4,{'run' if number % 2 else 'Pass|Fail'}" for number in (6, 7, 9, 11, 13, 15)
    ]
    (src / "pipe.csv").write_text("\n".join(["path,label", *rows]) + "\n", "utf-8")
    refused = _run(*index, "--labels", str(src / "pipe.csv"))
    assert refused.returncode == 1
    assert "line 2" in refused.stderr
    assert "Traceback" not in refused.stderr

    files = [*LABEL_FILES, "binary.parquet"]
    summary = _tubelet(*index, *(part for name in files for part in ("--labels", str(src / name))))
    rows = read_manifest(manifest).to_pylist()
    labels = {row["path"]: row["label"] for row in rows if row["status"] == "ok"}
    shown = {name: os.fsdecode(name).encode("utf-8", "backslashreplace").decode() for name in NAMES}
    assert labels == {f"formats/{shown[name]}": label for name, label in NAMES.items()}
    assert summary["objects"] == summary["ok"] + summary["errors"] + summary["not_video"] == len(rows)
    assert (summary["ok"], summary["errors"]) == (len(NAMES), 0)
    assert summary["objects"] + summary["skipped"] == _found(src)

    server = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--review-limit", "0")
    model, out = str(tiny_bundle(tmp_path / "model")), str(tmp_path / "predictions")
    labelled = _tubelet("label", manifest, "--model", model, "--out", out, *server)
    assert (labelled["objects"], labelled["ok"]) == (len(NAMES), len(NAMES)) == (len(read_rows(out)),) * 2
    assert labelled["objects"] + summary["not_video"] + summary["skipped"] == _found(src)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_long_videos_within_and_over_the_limits(tmp_path: Path) -> None:
    """35 minutes at 25 per second that only decoding tells: counted once, and the limit is named."""
    src = tmp_path / "videos"
    src.mkdir()
    for name, codec in (("a.avi", "mpeg4"), ("b.vob", "mpeg2video")):
        with av.open(str(src / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=25, options={"bf": "2"})
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            for number in range(52_500):
                frame = av.VideoFrame.from_ndarray(
                    np.full((24, 16), number % 200, np.uint8), format="yuv420p"
                )
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    summary = _tubelet("index", str(src), "--out", str(tmp_path / "manifest"))
    assert (summary["ok"], summary["errors"]) == (2, 0)
    label = ("label", str(tmp_path / "manifest"), "--model", str(tiny_bundle(tmp_path / "model")))
    label += ("--out", str(tmp_path / "out"), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    label += ("--review-limit", "0", "--max-error-rate", "1")
    assert _tubelet(*label, "--max-frames", "52499")["errors"] == 2
    rows = read_rows(str(tmp_path / "out"))
    assert {row["error_code"] for row in rows} == {"too_large"}
    assert all("--max-frames" in row["error"] for row in rows)
    done = _tubelet(
        *label, "--max-frames", "52500", "--deadline", "300", "--memory", "1GiB", "--retry-errors"
    )
    assert (done["ok"], done["errors"]) == (2, 0)

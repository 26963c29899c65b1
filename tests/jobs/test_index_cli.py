"""`tubelet index` as a person runs it: exit status, one or two lines of error, a JSON summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
from support import S3Bucket
from support.corpus import put, put_text, put_videos
from tubelet.corpus.manifest import read_manifest


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tubelet")), "index", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}, check=False
    )


def _summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _error(done: subprocess.CompletedProcess[str]) -> str:
    """The lines of the error, which must be one or two and no traceback."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    assert 1 <= len(message.splitlines()) <= 2, message
    return message


def test_index_and_update_on_s3(s3: S3Bucket) -> None:
    src, out = f"{s3.uri}/in box", f"{s3.uri}/manifest"
    put_videos(src, ["left/a 1.mp4", "right/b.mp4"])
    put(src, {"right/notes.txt": b"text"})
    done = _run(src, "--out", out, "--labels", "folders", "--split", "train=0.5,test=0.5")
    summary = _summary(done)
    wanted = {"objects": 3, "ok": 2, "errors": 0, "not_video": 1, "skipped": 0, "to_retry": 0}
    wanted |= {"probed": 3, "unchanged": 0, "removed": 0}
    assert wanted == {name: summary[name] for name in wanted}
    assert "indexing: 3/3 videos" in done.stderr
    assert read_manifest(out).num_rows == 3
    again = _summary(_run(src, "--out", out, "--update"))
    assert (again["probed"], again["unchanged"], again["removed"], again["not_video"]) == (0, 3, 0, 1)
    assert "add --update" in _error(_run(src, "--out", out))


def test_without_a_cluster_ray_is_not_even_imported(tmp_path: Path) -> None:
    put_videos(str(tmp_path / "v"), ["left/a.mp4", "right/b.mp4"])
    script = (
        "import sys; from tubelet_jobs.cli import run; "
        "status = run(['index', 'v', '--out', 'm', '--labels', 'folders']); "
        "print([name for name in ('ray', 'torch', 'mlflow') if name in sys.modules]); sys.exit(status)"
    )
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary, imported = done.stdout.splitlines()
    assert (json.loads(summary)["ok"], imported) == (2, "[]")


def test_the_report_is_an_artifact_of_the_run(tmp_path: Path) -> None:
    put_videos(str(tmp_path / "v"), ["left/a.mp4", "right/b.mp4"])
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    _summary(_run(str(tmp_path / "v"), "--out", str(tmp_path / "m"), "--tracking-uri", uri))
    client = mlflow.MlflowClient(uri, uri)
    (experiment,) = client.search_experiments(filter_string="name = 'tubelet'")
    (run,) = client.search_runs([experiment.experiment_id])
    (report,) = [item.path for item in client.list_artifacts(run.info.run_id) if item.path.endswith(".html")]
    page = Path(client.download_artifacts(run.info.run_id, report, str(tmp_path))).read_text("utf-8")
    assert page == (tmp_path / "m" / "_report.html").read_text("utf-8")


def test_errors_are_one_or_two_lines(s3: S3Bucket, tmp_path: Path) -> None:
    src = str(tmp_path / "v")
    put(src, {"a.mp4": b"x"})
    out = ("--out", str(tmp_path / "m"))
    labels = put_text(str(tmp_path / "l.csv"), "path,label", "b.mp4,x")
    assert "0 of 1 rows match" in _error(_run(src, *out, "--labels", labels))
    assert "does not exist" in _error(_run(str(tmp_path / "none"), *out))
    assert "no bucket 'not-there-at-all'" in _error(_run("s3://not-there-at-all/x", *out))
    assert "AWS_PROFILE" in _error(_run(s3.uri, *out, AWS_SECRET_ACCESS_KEY="wrong"))
    assert "add up to 0.5" in _error(_run(src, *out, "--split", "train=0.5"))
    assert not (tmp_path / "m").exists()


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    done = _run(str(tmp_path))
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert _run(str(tmp_path), "--out", "x", "--no-such-flag").returncode == 2


def test_help_has_an_example() -> None:
    done = _run("--help")
    assert done.returncode == 0
    assert "Example: tubelet index s3://bucket/videos" in " ".join(done.stdout.split())


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a.mp4": b"x", "b.mp4": b"y"})
    done = _run(str(tmp_path / "v"), "--out", str(tmp_path / "m"), "--dry-run")
    wanted = {"objects": 2, "to_probe": 2, "probed": 0, "dry_run": True}
    summary = _summary(done)
    assert wanted == {name: summary[name] for name in wanted}
    assert "dry run: would open 2 objects" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["v"]

"""The same commands on an S3 server and on local folders: equal labels, equal scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from support import S3Bucket
from tubelet import storage
from tubelet_jobs.demo_corpus import write_corpus

TUBELET = Path(sys.executable).with_name("tubelet")
STEPS = ("max_steps=4", "batch=8", "checkpoint_every=4")


def _tubelet(*args: str) -> dict[str, Any]:
    done = subprocess.run([TUBELET, *args], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _by_hand(base: str, tracking: str) -> dict[str, dict[str, Any]]:
    """Index, train, evaluate and label as one would type it; returns the predictions by path."""
    manifest, model, out = f"{base}/manifest", f"{base}/model", f"{base}/predictions"
    server = ("--tracking-uri", tracking)
    _tubelet("index", f"{base}/labelled", "--out", manifest, "--labels", f"{base}/labels.csv")
    _tubelet("train", "--recipe", "tiny", "--manifest", manifest, "--out", model, *server, *STEPS)
    scores = _tubelet("evaluate", "--model", model, "--manifest", manifest, "--split", "train", *server)
    summary = _tubelet("label", f"{base}/inbox", "--model", model, "--out", out, *server)
    assert (summary["ok"], summary["errors"]) == (18, 4)
    assert _tubelet("label", f"{base}/inbox", "--model", model, "--out", out, *server)["already_done"] == 22
    filesystem, path = storage.filesystem(out)
    rows = ds.dataset(path, filesystem=filesystem).to_table().to_pylist()
    found = {row["uri"].rpartition("/inbox/")[2]: row for row in rows}
    return {**found, "evaluation": scores}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_labels_and_scores_are_equal_on_s3_and_in_folders(s3: S3Bucket, tmp_path: Path) -> None:
    write_corpus(tmp_path, per_class=5, inbox=18, broken=4, seed=1)
    storage.upload_dir(tmp_path, s3.uri)
    local = _by_hand(str(tmp_path), f"sqlite:///{tmp_path}/local.db")
    remote = _by_hand(s3.uri, f"sqlite:///{tmp_path}/remote.db")
    assert local["evaluation"]["top1"] == remote["evaluation"]["top1"]
    assert local.keys() == remote.keys()
    for path in local.keys() - {"evaluation"}:
        here, there = local[path], remote[path]
        same = ("key", "status", "error_code", "label", "topk_labels", "views", "clip_times_s", "window")
        assert {name: here[name] for name in same} == {name: there[name] for name in same}
        if here["status"] == "ok":
            assert here["score"] == pytest.approx(there["score"], abs=1e-6)
            assert here["topk_scores"] == pytest.approx(there["topk_scores"], abs=1e-6)

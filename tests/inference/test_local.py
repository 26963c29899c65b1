"""A model in a notebook: no Ray, paths and bytes in, rows as `label` writes them out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tubelet
from support.labelling import CLASSES, tiny_bundle, write_video
from tubelet.clips import ClipDecoder
from tubelet.corpus.manifest import key_of
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.schema import RowShape

SCRIPT = """
import json, sys, tubelet
row, = tubelet.load(sys.argv[1]).predict(sys.argv[2])
print(json.dumps([row["label"], "ray" in sys.modules, "mlflow" in sys.modules]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    tiny_bundle(folder / "model")
    for seed in range(2):
        write_video(folder / f"{seed}.mp4", seed)
    (folder / "bad.mp4").write_bytes(b"no video" * 100)
    return folder


def test_rows_of_paths_and_bytes(folder: Path) -> None:
    path = folder / "1.mp4"
    with tubelet.load(str(folder / "model")) as model:
        assert model.labels == {"label": CLASSES}
        one, bad, missing, wrong, same = model.predict(
            [path, folder / "bad.mp4", folder / "none.mp4", "ftp://x/y.mp4", path.read_bytes()]
        )
        (views,) = model.predict(path, views="2x3", topk=1, scores=True)
    assert list(one) == RowShape().schema().names
    assert (one["status"], one["key"], one["uri"]) == ("ok", key_of("1.mp4"), str(path))
    assert [row["error_code"] for row in (bad, missing, wrong)] == ["open_error", "not_found", "bad_uri"]
    assert (same["uri"], same["label"], same["score"]) == (None, one["label"], one["score"])
    assert (views["views"], len(views["topk_labels"]), len(views["scores"])) == (6, 1, len(CLASSES))
    bundle = ModelBundle.load(folder / "model")
    decoder = ClipDecoder(bundle.clip)
    batch = {name: np.array([value], object) for name, value in {"key": "k", "uri": str(path)}.items()}
    with torch.inference_mode():
        logits = bundle.model(torch.from_numpy(decoder(batch)["tubelets"][:, 0]))
    decoder.close()
    scores = torch.softmax(logits, -1)[0]
    assert one["label"] == CLASSES[int(scores.argmax())]
    assert one["score"] == pytest.approx(float(scores.max()), abs=1e-6)


def test_without_ray_and_without_mlflow(folder: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(folder / "model"), str(folder / "0.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    label, ray, mlflow = json.loads(done.stdout)
    assert label in CLASSES
    assert not ray
    assert not mlflow


def test_logits_that_are_no_numbers_make_errors(folder: Path, tmp_path: Path) -> None:
    bundle = ModelBundle.load(folder / "model")
    with torch.no_grad():
        bundle.model.head.bias[0] = float("nan")
    bundle.save(tmp_path)
    with tubelet.load(tmp_path) as model:
        (row,) = model.predict(folder / "0.mp4", embedding="float32")
    assert (row["status"], row["error_code"]) == ("error", "non_finite")
    assert row["label"] is row["score"] is row["topk_scores"] is row["clip_times_s"] is None

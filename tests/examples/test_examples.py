"""Each script in examples/ runs as its head says."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support.labelling import tiny_bundle, write_video
from tubelet.inference.schema import RowShape, table_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name: str, *args: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_decoder_in_a_dataloader(tmp_path: Path) -> None:
    good = [str(write_video(tmp_path / f"{seed}.mp4", seed)) for seed in range(2)]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    said = _run("dataloader.py", *good, str(tmp_path / "broken.mp4"))
    assert "(3, 16, 112, 112, 3) torch.uint8, 2 decoded" in said


def test_vivit_in_plain_pytorch(tmp_path: Path) -> None:
    main, threads = runpy.run_path(str(EXAMPLES / "vivit_in_pytorch.py"))["main"], torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other crawl on a busy machine
    try:
        assert main(tmp_path / "model.safetensors") > 0.8
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "model.safetensors").stat().st_size > 0


def test_labels_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = [str(write_video(tmp_path / "0.mp4", 0)), str(tmp_path / "broken.mp4")]
    main = runpy.run_path(str(EXAMPLES / "label_from_python.py"))["main"]
    main(str(tiny_bundle(tmp_path / "model")), videos)
    said = capsys.readouterr()
    assert said.out.startswith(f"{videos[0]}: ")
    assert "%" in said.out
    assert said.err.startswith(f"{videos[1]}: open_error: ")


def test_predictions_are_read_with_duckdb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"key": "a", "window": 0, "uri": "a.mp4", "status": "ok", "label": "left", "score": 0.9},
        {"key": "b", "window": 0, "uri": "b.mp4", "status": "ok", "label": "left", "score": 0.5},
        {"key": "c", "window": 0, "uri": "c.mp4", "status": "error", "error_code": "open_error"},
    ]
    pq.write_table(table_of(rows, RowShape().schema()), tmp_path / "part-00000000.parquet")
    runpy.run_path(str(EXAMPLES / "read_predictions.py"))["main"](str(tmp_path))
    said = capsys.readouterr().out
    assert "0.7" in said
    assert "open_error" in said

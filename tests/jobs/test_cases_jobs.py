"""Inputs that fell short, each with its right answer: rows of a MANIFEST.csv that need the command line.

``TUBELET_CASES`` names the folder (default: the one beside the checkout). Manifests and weights go to
``train``, models and checkpoints to ``label``, predictions to ``review``. ``right`` holds ``key=value``
tokens, `` | `` between alternatives, then ``; `` and words for people; what names no status is to be refused.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from support.cases import CASES, Row, case_params
from support.corpus import video_bytes
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet_jobs import cli

REFUSED = {"checkpoints", "init-files", "manifests", "models"}
PAGES = {"nan-predictions", "wide-video"}
_CPU_S = 8.0


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    for name in (
        "labelling.job",
        "training.prepare",
        "tracking",
    ):  # their import is not what takes long below
        importlib.import_module(f"tubelet.{name}")
    root = tmp_path_factory.mktemp("corpus")
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"):
        (root / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "videos" / name).write_bytes(video_bytes())
    given = {"src": str(root / "videos"), "out": str(root / "m"), "labels": "folders", "split": "train=1"}
    index_corpus(IndexConfig.model_validate(given))
    return str(root / "m")


def _command(row: Row, manifest: str, out: Path) -> list[str]:
    case = str(CASES / row["path"])
    tracking = ["--tracking-uri", f"sqlite:///{out.parent / 'mlflow.db'}", "--out", str(out), "--dry-run"]
    if row["job"] == "label":
        return ["label", manifest, "--model", case, *tracking]
    given = case if row["kind"] == "manifests" else manifest
    init = ["--init", case] if row["kind"] == "init-files" else []
    return ["train", "--recipe", "tiny", "--manifest", given, *init, *tracking]


def _run(command: list[str], folder: Path) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command line, called in this process in an empty ``folder``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), redirect_stdout(out), redirect_stderr(err):
        status = cli.run(command)
    return status, out.getvalue(), err.getvalue()


def _holds(right: str, status: int, said: str) -> bool:
    """Whether one of the alternatives is so."""
    for alternative in right.partition("; ")[0].split(" | "):
        tokens = dict(token.partition("=")[::2] for token in shlex.split(alternative))
        wanted = [status == int(tokens.get("rc", 1))]
        if "says" in tokens:
            wanted.append(re.search(tokens["says"], said) is not None)
        if status:
            error = said.rpartition("error: ")[2].strip()
            wanted += [len(error.splitlines()) <= int(tokens.get("lines", 3)), "TUBELET_DEBUG" not in error]
        if all(wanted):
            return True
    return False


@pytest.mark.parametrize("row", case_params(lambda row: row["kind"] in REFUSED))
def test_what_a_job_is_given(row: Row, manifest: str, tmp_path: Path) -> None:
    started_s = time.process_time()
    status, out, err = _run(_command(row, manifest, tmp_path / "out"), tmp_path)
    assert time.process_time() - started_s < _CPU_S
    assert "Traceback" not in err
    assert _holds(row["right"], status, out + err), (status, out, err)
    left = {path.name for path in tmp_path.iterdir()}
    assert not left & {"INIT_EXECUTED", "out"}, "nothing of the input is run, and nothing is left"


@pytest.mark.parametrize("row", case_params(lambda row: row["kind"] in PAGES and row["job"] == "review"))
def test_predictions_become_a_page(row: Row, tmp_path: Path) -> None:
    predictions, page = CASES / row["path"], tmp_path / "page.html"
    (tmp_path / "here").symlink_to(predictions.parent)  # the URI of a row may be relative to it
    command = ["review", os.fspath(predictions), "--out", str(page)]
    status, out, err = _run(command, tmp_path / "here")
    assert status == 0, err
    rows = int(re.search(r"rows=(\d+)", row["right"])[1])  # type: ignore[index]
    assert json.loads(out.splitlines()[-1])["videos"] == rows
    _, _, rest = page.read_text("utf-8").partition('id="data">')
    data = json.loads(rest.partition("</script>")[0], parse_constant=pytest.fail)
    assert len(data["videos"]) == rows

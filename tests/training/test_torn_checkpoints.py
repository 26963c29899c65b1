"""A checkpoint that has its marker and is not whole is skipped, and whoever needs one is told."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import S3Bucket
from support.training import RECIPE, Run, run_rank, weights_of, write_corpus
from tubelet import storage
from tubelet.config import UserError
from tubelet.inference.bundle import ModelBundle
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.prepare import prepare, write_record
from tubelet.training.request import Request
from tubelet_jobs.recipes import load_recipe

SETTINGS = ("max_steps=4", "checkpoint_every=2")


def cut(name: str, size_bytes: int | None = None) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2 if size_bytes is None else size_bytes])

    return act


def rot(folder: Path) -> None:
    """A few flipped bits; the size stays."""
    path = folder / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-300] ^= 0x40
    path.write_bytes(content)


def marker_alone(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "COMPLETE":
            path.unlink()


SORTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut model": (cut("model.safetensors"), r"model\.safetensors has \d+ of \d+ bytes"),
    "cut state": (cut("state.safetensors"), r"state\.safetensors has \d+ of \d+ bytes"),
    "empty state": (cut("state.safetensors", 0), r"state\.safetensors has 0 of \d+ bytes"),
    "cut records": (cut("told.json"), r"told\.json has \d+ of \d+ bytes"),
    "missing file": (lambda folder: (folder / "told.json").unlink(), r"told\.json is missing"),
    "marker alone": (marker_alone, r"model\.safetensors is missing"),
    "empty marker": (cut("COMPLETE", 0), "COMPLETE is cut"),
    "bit rot": (rot, r"state\.safetensors does not hold what was written"),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 8})


@pytest.fixture(scope="module")
def whole(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of steps 2 and 4."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_rank(0, 1, manifest, Run(str(out), None, SETTINGS))
    write_record(prepare(request(manifest, out)), "a run")
    return out


def request(manifest: str, out: Path) -> Request:
    recipe = load_recipe("tiny", [*RECIPE, "workers=1", *SETTINGS])
    return Request(recipe=recipe, manifest=manifest, out=str(out), resume=True)


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("sort", SORTS)
def test_newest_that_is_whole_is_taken(
    sort: str, manifest: str, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = SORTS[sort]
    newest, older = (out / "checkpoints" / f"step-0000000{step}" for step in (4, 2))
    damage(newest)
    store = CheckpointStore(str(out))
    assert store.newest() == 2
    fetched = store.fetch_newest(out)
    assert fetched is not None
    assert fetched[0] == 2
    text = prepare(request(manifest, out)).plan_text()
    assert "checkpoint step 4 is not whole" in text
    assert "resumes from step 2" in text
    with caplog.at_level(logging.WARNING):
        bundle = ModelBundle.load(out)
    assert bundle.source == str(older / "model.safetensors")
    [line] = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    for words in (text, line):
        assert re.search(reason, words)
    with pytest.raises(UserError, match=rf"step-00000004 is incomplete \(.*{reason}"):
        ModelBundle.load(newest)
    # None is whole: one line names what is there.
    damage(older)
    with pytest.raises(UserError, match=rf"(?s)no model at .*step-00000002 is damaged \({reason}") as raised:
        ModelBundle.load(out)
    assert len(str(raised.value).splitlines()) == 1
    assert "resumes from the start" in prepare(request(manifest, out)).plan_text()


def test_resumed_from_the_older_one_it_ends_with_the_same_bits(manifest: str, whole: Path, out: Path) -> None:
    cut("state.safetensors")(out / "checkpoints" / "step-00000004")
    run_rank(0, 1, manifest, Run(str(out), None, SETTINGS))
    a, b = weights_of(str(whole), 4), weights_of(str(out), 4)
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_one_without_a_marker_is_told_of(manifest: str, out: Path) -> None:
    (out / "checkpoints" / "step-00000004" / "COMPLETE").unlink()
    text = prepare(request(manifest, out)).plan_text()
    assert "checkpoint step 4 is not whole (there is no COMPLETE): skipped\nresumes from step 2" in text


def test_on_a_store_too(out: Path, s3: S3Bucket, tmp_path: Path) -> None:
    rot(out / "checkpoints" / "step-00000004")
    uri = f"{s3.uri}/a run"
    storage.upload_dir(out, uri)
    store = CheckpointStore(uri)
    assert store.newest_and_torn() == (2, {4: "state.safetensors does not hold what was written"})
    fetched = store.fetch_newest(tmp_path / "fetched")
    assert fetched is not None
    assert fetched[0] == 2
    assert ModelBundle.load(uri).source == f"{store.uri(2)}/model.safetensors"


@pytest.mark.parametrize("marker", ["{}", '{"step": 4, "files": {"model.safetensors": %d}}'])
def test_markers_of_earlier_versions_are_accepted(out: Path, marker: str) -> None:
    folder = out / "checkpoints" / "step-00000004"
    size = (folder / "model.safetensors").stat().st_size
    (folder / "COMPLETE").write_text(marker % size if "%" in marker else marker)
    assert CheckpointStore(str(out)).newest() == 4
    assert ModelBundle.load(out).source == str(folder / "model.safetensors")


def test_marker_says_sizes_and_digests(whole: Path) -> None:
    marker = json.loads((whole / "checkpoints" / "step-00000004" / "COMPLETE").read_text())
    assert (
        set(marker["files"])
        == set(marker["sha256"])
        == {
            "model.safetensors",
            "state.safetensors",
            "told.json",
        }
    )

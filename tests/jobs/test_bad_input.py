"""What a person can get wrong, through the command line: status 1 (2 for a setting), one or two lines."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import S3Bucket
from support.labelling import tiny_bundle
from tubelet.config import UserError
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.storage import local_s3
from tubelet.storage.lock import OutputLock
from tubelet_jobs import cli
from tubelet_jobs.demo_corpus import write_corpus

TUBELET = Path(sys.executable).with_name("tubelet")


@dataclass(frozen=True)
class World:
    """Videos of six classes, and manifests of them that lack something."""

    root: Path

    def index(self, name: str, **options: str | None) -> str:
        given = {"src": str(self.root / "labelled"), "out": str(self.root / name), **options}
        index_corpus(IndexConfig.model_validate(given))
        return str(self.root / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    write_corpus(root, per_class=1, inbox=0, broken=0)
    return World(root)


def _error(*args: str, **env: str) -> str:
    """The error that the command line ends with, called in this process: starting one takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in env.items():
            patch.setenv(name, value)
        status = cli.run(args)
    return _checked(status, out.getvalue(), err.getvalue())


def _checked(status: object, out: str, err: str) -> str:
    """The error's lines, of which there may be two."""
    assert status in (1, 2), (out, err)
    assert out == ""
    assert "Traceback" not in err
    _, mark, error = ("\n" + err).rpartition("\nerror: ")
    assert mark, err
    assert len(error.strip().splitlines()) <= 2
    assert "TUBELET_DEBUG" not in error, "an error that nobody thought of"
    return error


def _train(manifest: str, out: Path, *more: str) -> tuple[str, ...]:
    tracking = f"sqlite:///{out.parent / 'mlflow.db'}"
    return ("train", "--manifest", manifest, "--out", str(out), "--tracking-uri", tracking, *more)


def test_empty_prefix_and_missing_bucket_have_nothing_to_label(s3: S3Bucket, tmp_path: Path) -> None:
    model, out = str(tiny_bundle(tmp_path / "model")), f"{s3.uri}/p"
    more = ("--model", model, "--out", out, "--tracking-uri", f"sqlite:///{tmp_path}/m.db")
    assert "nothing under" in _error("label", f"{s3.uri}/empty", *more)
    assert "not-there-at-all" in _error("label", "s3://not-there-at-all/x", *more)


def test_wrong_credentials_are_said_to_be_wrong(s3: S3Bucket, world: World, tmp_path: Path) -> None:
    said = _error("index", s3.uri, "--out", str(tmp_path / "m"), AWS_SECRET_ACCESS_KEY="wrong")
    assert "AWS_SECRET_ACCESS_KEY" in said
    said = _error(*_train(f"{s3.uri}/manifest", tmp_path / "run"), AWS_SECRET_ACCESS_KEY="wrong")
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert "wrong" not in said.split()


def test_training_without_labels(world: World, tmp_path: Path) -> None:
    command = [TUBELET, *_train(world.index("unlabelled"), tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert "label" in _checked(done.returncode, done.stdout, done.stderr)
    assert not (tmp_path / "run").exists()


def test_training_with_one_class(world: World, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    with (world.root / "labels.csv").open(encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    labels.write_text("path,label\n" + "".join(f"{path},same\n" for path in paths), "utf-8")
    manifest = world.index("one-class", labels=str(labels), split="train=1,val=0,test=0")
    assert "same" in _error(*_train(manifest, tmp_path / "run"))


def test_split_without_videos(world: World, tmp_path: Path) -> None:
    manifest = world.index("all-test", labels="folders", split="train=0,val=0,test=1")
    assert "train" in _error(*_train(manifest, tmp_path / "run"))
    model = str(tiny_bundle(tmp_path / "model"))
    args = ("--model", model, "--manifest", manifest, "--tracking-uri", f"sqlite:///{tmp_path}/m.db")
    assert "val" in _error("evaluate", *args, "--split", "val")


def test_label_file_that_matches_nothing_shows_both_sides(world: World, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"other/{i}.avi,x\n" for i in range(5)), "utf-8")
    source = str(world.root / "labelled")
    said = _error("index", source, "--out", str(tmp_path / "m"), "--labels", str(labels))
    assert "0 of 5 rows" in said
    assert [said.count("other/"), said.count(".mp4")] == [3, 3]


def test_unknown_recipe_key_names_the_nearest(world: World, tmp_path: Path) -> None:
    manifest = world.index("good", labels="folders", split="train=1,val=0,test=0")
    assert "max_steps" in _error(*_train(manifest, tmp_path / "run", "max_step=3"))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("batchsize: 3\n", "utf-8")
    assert "batch" in _error(*_train(manifest, tmp_path / "run", "--recipe", str(recipe)))
    assert not (tmp_path / "run").exists()


def test_model_of_other_classes(world: World, tmp_path: Path) -> None:
    manifest = world.index("six-classes", labels="folders", split="train=0,val=0,test=1")
    model = str(tiny_bundle(tmp_path / "model"))  # left, right, up, down
    args = ("--model", model, "--manifest", manifest, "--tracking-uri", f"sqlite:///{tmp_path}/m.db")
    assert "clockwise" in _error("evaluate", *args)


def test_output_of_another_job_is_left_alone(world: World, tmp_path: Path) -> None:
    manifest = world.index("kept", labels="folders", split="train=1,val=0,test=0")
    before = {path: path.read_bytes() for path in Path(manifest).rglob("*") if path.is_file()}
    model = str(tiny_bundle(tmp_path / "model"))
    source = str(world.root / "labelled")
    assert "--out" in _error(*_train(manifest, Path(manifest)))
    assert "--out" in _error("label", source, "--model", model, "--out", manifest)
    assert "--update" in _error("index", source, "--out", manifest)
    assert {path: path.read_bytes() for path in before} == before


def test_second_job_on_one_output_is_told_by_whom(world: World, s3: S3Bucket, tmp_path: Path) -> None:
    source = str(world.root / "labelled")
    with OutputLock(f"{s3.uri}/m", job="tubelet index"):
        said = _error("index", source, "--out", f"{s3.uri}/m")
    assert "tubelet index" in said
    manifest = world.index("for-two", labels="folders", split="train=1,val=0,test=0")
    with OutputLock(str(tmp_path / "run"), job="tubelet train"):
        assert "tubelet train" in _error(*_train(manifest, tmp_path / "run", "--resume"))
        assert "tubelet train" in _error(*_train(manifest, tmp_path / "run"))


def test_no_model_and_no_manifest(world: World, tmp_path: Path) -> None:
    manifest = world.index("lone", labels="folders", split="train=0,val=0,test=1")
    tracking = ("--tracking-uri", f"sqlite:///{tmp_path}/m.db")
    missing = str(tmp_path / "no-model")
    assert "no-model" in _error("evaluate", "--model", missing, "--manifest", manifest, *tracking)
    assert "no-manifest" in _error(*_train(str(tmp_path / "no-manifest"), tmp_path / "run"))
    assert "no-predictions" in _error(
        "review", str(tmp_path / "no-predictions"), "--out", f"{tmp_path}/p.html"
    )


def test_no_free_port_for_the_embedded_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where every port is taken: binding fails, and the error says which were tried."""
    monkeypatch.setattr(local_s3.socket.socket, "bind", _taken)
    with pytest.raises(UserError, match="no free port"):
        local_s3.LocalS3(tmp_path, ("b",)).start()


def _taken(self: object, address: object) -> None:
    raise OSError(98, "Address already in use")


def test_one_syntax_of_views_and_one_range_of_the_error_rate(world: World, tmp_path: Path) -> None:
    manifest = world.index("views", labels="folders", split="train=0,val=0,test=1")
    model = str(tiny_bundle(tmp_path / "model"))  # left, right, up, down
    tracking = ("--tracking-uri", f"sqlite:///{tmp_path}/m.db")
    evaluate = ("evaluate", "--model", model, "--manifest", manifest, *tracking)
    label = ("label", manifest, "--model", model, "--out", str(tmp_path / "out"), *tracking)
    for job in (evaluate, label):
        assert "for example 4x3" in _error(*job, "--views", "many")
        assert "max_error_rate" in _error(*job, "--max-error-rate", "7")
    assert "clockwise" in _error(*evaluate, "--views", "1x2")
    assert "for example 4x3" in _error(*_train(manifest, tmp_path / "run", "evaluation.views=many"))

"""Wrong input is refused before Ray starts, in words that say what to do."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.training import RECIPE, write_corpus
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.manifest import read_manifest, write_manifest
from tubelet.storage.errors import DiskFullError
from tubelet.training.build import initial_model
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.examples import load_examples
from tubelet.training.prepare import Prepared, leaves_no_false_start, prepare, write_record
from tubelet.training.request import Request
from tubelet_jobs.recipes import load_recipe


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 4, "val": 2})


def changed(manifest: str, tmp_path: Path, **columns: object) -> str:
    """A copy of the manifest with columns set to one value."""
    table = read_manifest(manifest)
    for name, value in columns.items():
        field = table.schema.field(name)
        place = table.column_names.index(name)
        table = table.set_column(place, field, pa.array([value] * len(table), field.type))
    target = str(tmp_path / "changed.parquet")
    write_manifest(table, target)
    return target


def request(
    manifest: str, out: Path, *overrides: str, resume: bool = False, init: str | None = None
) -> Request:
    recipe = load_recipe("tiny", [*RECIPE, *overrides])
    return Request(recipe=recipe, manifest=manifest, out=str(out), init=init, resume=resume)


def test_examples_are_in_order_and_hold_each_column_once(manifest: str) -> None:
    """Of a million examples each copy is hundreds of megabytes."""
    table = read_manifest(manifest)
    shuffled = table.take(pa.array(range(len(table))[::-1]))
    examples = load_examples(shuffled, {"label": "label"})
    wanted = table.filter(pc.equal(table["split"], "train")).sort_by("key")["uri"].to_pylist()
    assert examples.table["uri"].to_pylist() == examples.about["uri"].to_pylist() == wanted
    for name in ("uri", "etag", "key"):
        one, two = (each[name].chunk(0).buffers()[2] for each in (examples.table, examples.about))
        assert one.address == two.address, name


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": None}, r"(?s)label.*--labels"),
        ({"label": "left"}, r"(?s)one class 'left'.*--labels"),
        ({"split": "test"}, r"no labelled videos in split 'train'; the splits hold: test"),
        ({"status": "error"}, r"(?s)label"),
    ],
)
def test_manifests_that_cannot_train(
    manifest: str, tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(request(changed(manifest, tmp_path, **columns), tmp_path / "out"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=b-16x2-model9", "model=b-16x2-model9"),
        ("size=36", r"does not divide into tubelets.*change frames, size or tubelet"),
        ("heads=[verb]", "no labels 'label_verb'; it has label"),
        ("batchs=4", "did you mean"),
        ("workers=0", "write a number of workers"),
    ],
)
def test_settings_that_cannot_be(manifest: str, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(request(manifest, tmp_path / "out", override))


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no manifest at .*nowhere"):
        prepare(request(str(tmp_path / "nowhere"), tmp_path / "out"))


def test_existing_output_needs_resume_and_the_same_settings(manifest: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(request(manifest, out))
    write_record(first, "run-id")
    with pytest.raises(UserError, match=r"exists: add --resume"):
        prepare(request(manifest, out))
    again = prepare(request(manifest, out, resume=True))
    assert again.record is not None
    assert again.record["run_id"] == "run-id"
    # Machines may change, the stream may not.
    prepare(request(manifest, out, "workers=3", "decode_workers=5", "checkpoint_every=3", resume=True))
    with pytest.raises(UserError, match=r"changed settings \(.*optimiser.*seed|seed.*optimiser"):
        prepare(request(manifest, out, "seed=5", "lr=0.5", resume=True))
    table = read_manifest(manifest)
    fewer = str(tmp_path / "fewer.parquet")
    write_manifest(table.filter(pc.not_equal(table["path"], table["path"][0])), fewer)
    with pytest.raises(UserError, match="are not those that"):
        prepare(request(fewer, out, resume=True))


def test_somebody_elses_folder_is_refused(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(UserError, match="exists"):
        prepare(request(manifest, tmp_path / "mine"))


def test_weights_that_are_none(manifest: str, tmp_path: Path) -> None:
    for init in (str(tmp_path / "nothing"), "models:/nobody@best"):
        with pytest.raises(UserError, match=r"no such file|cannot load|nothing"):
            prepare(request(manifest, tmp_path / "out", init=init))


def test_validation_leaves_out_classes_that_are_not_trained(manifest: str, tmp_path: Path) -> None:
    table = read_manifest(manifest)
    is_val = pc.equal(table["split"], "val")
    label = pc.if_else(is_val, pa.scalar("up"), table["label"])
    place = table.column_names.index("label")
    target = str(tmp_path / "other.parquet")
    write_manifest(table.set_column(place, table.schema.field("label"), label), target)
    prepared = prepare(request(target, tmp_path / "out"))
    assert prepared.validation is None
    assert "no labelled videos in split 'val'" not in prepared.plan_text()
    assert "none of the videos in split 'val' has a class that is trained" in prepared.plan_text()
    assert prepare(request(manifest, tmp_path / "out")).validation is not None


def test_plan_says_how_many_videos_each_split_has(manifest: str, tmp_path: Path) -> None:
    text = prepare(request(manifest, tmp_path / "out")).plan_text()
    assert "labelled videos per split: train 4, val 2" in text
    assert "not validated" not in text
    alone = write_corpus(tmp_path / "alone", {"train": 4})
    text = prepare(request(alone, tmp_path / "out")).plan_text()
    assert "no labelled videos in split 'val': the run is not validated, and no step is called best" in text


def false_start(prepared: Prepared, error: BaseException) -> None:
    with leaves_no_false_start(prepared):
        initial_model(prepared)
        write_record(prepared, "run-id")
        raise error


def test_false_start_leaves_nothing_that_the_same_command_refuses(manifest: str, tmp_path: Path) -> None:
    asked = request(manifest, tmp_path / "out")
    for error in (UserError("the cluster is too small"), KeyboardInterrupt()):
        prepared = prepare(asked)
        with pytest.raises(type(error)):
            false_start(prepared, error)
        assert not storage.exists(asked.out)
    # What a killed process leaves before the run began is no run either.
    initial_model(prepare(asked))
    prepare(asked)


def test_failure_after_a_checkpoint_keeps_the_run(manifest: str, tmp_path: Path) -> None:
    prepared = prepare(request(manifest, tmp_path / "out"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_text("weights")
    CheckpointStore(prepared.request.out).publish(2, tmp_path / "files")
    with pytest.raises(UserError, match="the store is gone"):
        false_start(prepared, UserError("the store is gone"))
    full = DiskFullError(
        "no room to write /a (No space left): free some on that disk, then run the same again"
    )
    with pytest.raises(DiskFullError, match=r"^no room .* left\): free some .* from step 2 with --resume$"):
        false_start(prepared, full)
    with pytest.raises(UserError, match="add --resume"):
        prepare(request(manifest, tmp_path / "out"))

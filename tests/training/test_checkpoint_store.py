"""A checkpoint exists or it doesn't, on local disk and on S3 alike."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from support import S3Bucket
from tubelet import storage
from tubelet.training import checkpoint
from tubelet.training.checkpoint import MARKER, CheckpointStore, CheckpointWriter


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        bucket: S3Bucket = request.getfixturevalue("s3")
        return f"{bucket.uri}/a run"
    return str(tmp_path / "a run")


def files(folder: Path, text: str = "weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    (folder / "state.safetensors").write_text(f"state of {text}")
    return folder


def test_newest_skips_what_has_no_marker(out: str, tmp_path: Path) -> None:
    store = CheckpointStore(out)
    assert store.newest() is None
    store.publish(3, files(tmp_path / "three"))
    store.publish(7, files(tmp_path / "seven"))
    # Step 9 broke off before its marker.
    storage.write_bytes(storage.join(store.uri(9), "model.safetensors"), b"half")
    assert store.newest() == 7
    assert store.steps() == [3, 7]
    fetched = store.fetch(7, tmp_path / "fetched")
    assert (fetched / "state.safetensors").read_text() == "state of weights"
    marker = json.loads(storage.read_bytes(storage.join(store.uri(7), MARKER)))
    assert marker["step"] == 7
    assert marker["files"] == {"model.safetensors": 7, "state.safetensors": 16}


def test_retention_keeps_the_newest_and_the_best(out: str, tmp_path: Path) -> None:
    store = CheckpointStore(out, retain=2)
    for step in (1, 2, 3, 4, 5):
        store.publish(step, files(tmp_path / str(step)), keep={2} if step > 1 else ())
    assert store.steps() == [2, 4, 5]
    assert sorted(storage.list_names(storage.join(out, "checkpoints"))) == [
        "step-00000002",
        "step-00000004",
        "step-00000005",
    ]


def test_a_half_written_checkpoint_does_not_mix_with_its_second_try(out: str, tmp_path: Path) -> None:
    store = CheckpointStore(out)
    storage.write_bytes(storage.join(store.uri(4), "left-over.safetensors"), b"old")
    store.publish(4, files(tmp_path / "four"))
    assert storage.list_names(store.uri(4)) == [MARKER, "model.safetensors", "state.safetensors"]


class Upload:
    """``storage.upload_dir``, failing the first ``failures`` times, after a file got through."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0
        self.real = storage.upload_dir

    def __call__(self, local: Path, uri: str, options: storage.StorageOptions) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            storage.write_bytes(storage.join(uri, "model.safetensors"), b"half", options)
            raise OSError("503 Slow Down")
        self.real(local, uri, options)


def test_a_transient_error_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = Upload(2)
    monkeypatch.setattr(checkpoint.storage, "upload_dir", upload)
    store = CheckpointStore(str(tmp_path / "run"))
    writer = CheckpointWriter(store, pauses_s=(0.01, 0.01))
    writer.save(5, files)  # type: ignore[arg-type]
    assert store.newest() is None
    writer.close()
    assert (store.newest(), writer.retries) == (5, 2)
    assert (Path(store.uri(5)) / "model.safetensors").read_text() == "weights"


def test_an_error_that_stays_ends_the_run_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.storage, "upload_dir", Upload(99))
    writer = CheckpointWriter(CheckpointStore(str(tmp_path / "run")), patience_s=0.1, pauses_s=(0.01, 0.01))
    writer.save(5, files)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="cannot write the checkpoint of step 5: 503 Slow Down"):
        writer.save(6, files)  # type: ignore[arg-type]


def test_saving_does_not_wait_for_the_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = storage.upload_dir

    def slow(local: Path, uri: str, options: storage.StorageOptions) -> None:
        assert gate.wait(30)
        real(local, uri, options)

    monkeypatch.setattr(checkpoint.storage, "upload_dir", slow)
    store = CheckpointStore(str(tmp_path / "run"))
    writer = CheckpointWriter(store)
    writer.save(5, files)  # type: ignore[arg-type]
    assert store.newest() is None  # `save` came back although nothing was uploaded
    gate.set()
    writer.close()
    assert store.newest() == 5

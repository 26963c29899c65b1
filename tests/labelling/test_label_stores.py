"""Outputs on stores that lack conditional puts: refused, or written by a single writer; no Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import S3Bucket
from support.labelling import assert_one_row_each, read_rows, tiny_bundle, write_corpus
from support.s3_proxy import Fault, Mode, s3_proxy
from tubelet.config import UserError
from tubelet.inference.schema import table_of
from tubelet.labelling.config import LabelConfig
from tubelet.labelling.prepare import prepare
from tubelet.storage.lock import OutputLock


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Videos and a model."""
    folder = tmp_path_factory.mktemp("stores")
    return write_corpus(folder / "videos", 3), tiny_bundle(folder / "model")


def write_output(config: LabelConfig) -> None:
    """What a job does to its output: lock, manifest, description, rows, rows in place of others."""
    with OutputLock(config.out, options=config.storage) as lock:
        for status in ("error", "ok"):
            sink = prepare(config, lock.check).sinks[0]
            rows = [{"key": f"k{i}", "window": 0, "etag": "a", "status": status} for i in range(5)]
            sink.add(table_of(rows, sink.schema))
            sink.close()


@pytest.mark.parametrize("mode", [Mode.NO_CONDITIONS, Mode.IGNORED_CONDITIONS, Mode.WEAK_ETAGS])
def test_output_on_a_store_that_lacks_something(
    world: tuple[Path, Path], s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    videos, model = world
    given = {"source": str(videos), "models": (str(model),), "out": f"{s3.uri}/out", "workers": 1}
    with s3_proxy(s3.server) as proxy:
        proxy.fault = Fault(mode)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        single = mode is not Mode.WEAK_ETAGS  # those keep locks and new objects safe
        if single:
            with pytest.raises(UserError, match=r"does not honour conditional puts.*\n.*--single-writer"):
                write_output(LabelConfig(**given))
        write_output(LabelConfig(**given, storage={"single_writer": single}))
        rows = read_rows(f"{s3.uri}/out")
    assert_one_row_each(rows, 5)
    assert {row["status"] for row in rows} == {"ok"}


def test_the_output_of_public_videos_is_written_with_credentials(
    world: tuple[Path, Path], s3: S3Bucket
) -> None:
    videos, model = world
    given = {"source": str(videos), "models": (str(model),), "out": f"{s3.uri}/out", "workers": 1}
    write_output(LabelConfig(**given, storage={"anonymous": True}))
    assert_one_row_each(read_rows(f"{s3.uri}/out"), 5)

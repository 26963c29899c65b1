"""What the tests of whole training runs compare with."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.training import write_corpus
from support.training_process import Train


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dozen small videos, one of them broken."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 10, "val": 2}, broken=[3])


@pytest.fixture(scope="session")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a training run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Train(manifest, str(folder / "run"), f"sqlite:///{folder}/mlflow.db").run()
    return folder / "run"

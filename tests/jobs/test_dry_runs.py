"""A dry run says as JSON what would be done, refuses what the real run would, and leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labelling import tiny_bundle, write_corpus
from tubelet.config import UserError
from tubelet.inference.output import OutputFiles, check_or_init_output
from tubelet_jobs.label import LabelOptions, command


def test_label_checks_its_output_its_export_and_its_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = write_corpus(tmp_path / "v", 2), tiny_bundle(tmp_path / "m")
    database = f"sqlite:///{tmp_path}/mlflow.db"

    def dry_run(**more: object) -> None:
        given = {
            "source": str(source),
            "models": (str(model),),
            "out": str(tmp_path / "out"),
            "dry_run": True,
        }
        command(LabelOptions.model_validate(given | {"tracking_uri": database} | more))

    dry_run()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"dry_run": True, "source": str(source), "out": str(tmp_path / "out")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "v"]
    with pytest.raises(UserError, match="not one that MLflow knows"):
        dry_run(tracking_uri="ftp://nowhere")
    with pytest.raises(UserError, match="end the name in"):
        dry_run(export="rows.txt")
    check_or_init_output(OutputFiles(str(tmp_path / "out")), {"model": "another", "sampling": "s"})
    with pytest.raises(UserError, match=r"holds rows made otherwise: model .another."):
        dry_run()
    dry_run(new_version=True)

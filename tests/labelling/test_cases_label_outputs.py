"""Outputs that a job before left damaged: the rows of a MANIFEST.csv of the kind ``full-disk``.

``TUBELET_CASES`` names the folder (default: the one beside the checkout). ``says=TEXT`` in ``right`` is what
the one line of label, review and export has to hold. The case here was left by a full disk of 16 KiB.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from support.cases import CASES, case_params
from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import RowShape
from tubelet.inference.sink import PredictionSink
from tubelet.labelling.export import export
from tubelet.review.page import ReviewConfig, review


@pytest.mark.parametrize("row", case_params(lambda row: row["kind"] == "full-disk"))
def test_damaged_output_is_named_in_one_line(row: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(CASES / row["path"], out, copy_function=shutil.copyfile)
    tokens = dict(token.partition("=")[::2] for token in shlex.split(row["right"].partition("; ")[0]))
    readers = [
        lambda: PredictionSink(OutputFiles(str(out)), RowShape().schema()),
        lambda: export(OutputFiles(str(out)), str(tmp_path / "rows.csv")),
        lambda: review(ReviewConfig(predictions=str(out), out=str(tmp_path / "page.html"))),
    ]
    for read in readers:
        with pytest.raises(UserError) as caught:
            read()
        assert tokens["says"] in str(caught.value)
        assert "delete it and run the same `tubelet label` again" in str(caught.value)
        assert "\n" not in str(caught.value)

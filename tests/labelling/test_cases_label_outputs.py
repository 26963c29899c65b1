"""Outputs that a job before left damaged: the rows of a MANIFEST.csv of the kind ``full-disk``.

``TUBELET_CASES`` names the folder (default: the one beside the checkout). ``says=TEXT`` in ``right`` is what
the one line of label, review and export has to hold. The case here was left by a full disk of 16 KiB.
"""

from __future__ import annotations

import csv
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import SHARED
from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import RowShape
from tubelet.inference.sink import PredictionSink
from tubelet.labelling.export import export
from tubelet.review.page import ReviewConfig, review

CASES = Path(os.environ.get("TUBELET_CASES") or SHARED / "cases")


def _rows() -> list[Any]:
    manifest = CASES / "MANIFEST.csv"
    if not manifest.is_file():
        return [pytest.param({}, marks=pytest.mark.skip(reason="no folder of cases"), id="none")]
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "full-disk"]
    return [pytest.param(row, id=row["path"]) for row in rows]


@pytest.mark.parametrize("row", _rows())
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

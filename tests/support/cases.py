"""Inputs that fell short, each with its right answer: a folder with a ``MANIFEST.csv``.

``TUBELET_CASES`` names the folder; without it, the one beside the checkout is taken where it lies there.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import SHARED

CASES = Path(os.environ.get("TUBELET_CASES") or SHARED / "cases")

Row = dict[str, str]


def listed_cases() -> list[Row]:
    """The rows of the manifest; none where there is no such folder."""
    manifest = CASES / "MANIFEST.csv"
    if not manifest.is_file():
        return []
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def case_params(wanted: Callable[[Row], bool]) -> list[Any]:
    """One test case per wanted row, or one that is skipped and says why."""
    rows = [pytest.param(row, id=row["path"]) for row in listed_cases() if wanted(row)]
    return rows or [pytest.param({}, marks=pytest.mark.skip(reason="no folder of cases"), id="none")]

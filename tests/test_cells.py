"""No cell of a CSV file runs as a formula."""

from __future__ import annotations

import pytest
from tubelet.cells import defused


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=HYPERLINK(\"http://x\")", "'=HYPERLINK(\"http://x\")"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("-running", "'-running"),
        ("-1.5", "-1.5"),
        ("a=b", "a=b"),
        (-3, -3),
        (None, None),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(cell: object, shown: object) -> None:
    assert defused(cell) == shown

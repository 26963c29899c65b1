"""Cells of CSV files that people open in a spreadsheet."""

from __future__ import annotations

from typing import Any

# What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def defused(cell: Any) -> Any:
    """The cell, text that a spreadsheet would run as a formula with an apostrophe before it.

    Names of objects and of labels come from strangers. Numbers stay numbers.
    """
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell

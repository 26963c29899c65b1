"""Predictions as JSON lines or CSV, for tools that read no Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tubelet import storage
from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.sink import part_name, part_numbers

FORMATS = (".jsonl", ".csv")


def check_target(uri: str) -> None:
    """Raises ``UserError`` where the name does not say which format is meant."""
    if not uri.endswith(FORMATS):
        raise UserError(f"--export {uri}: end the name in {' or '.join(FORMATS)}")


def export(files: OutputFiles, uri: str) -> int:
    """Write all rows at the root of ``files`` to ``uri``, part by part; returns how many.

    In CSV, lists are JSON. The file appears whole, or not at all.

    Raises:
        UserError: the name says neither ``.jsonl`` nor ``.csv``.
    """
    check_target(uri)
    as_csv, rows = uri.endswith(".csv"), 0
    with tempfile.TemporaryDirectory(prefix="tubelet-export-") as folder:
        local = Path(folder) / "rows"
        with local.open("w", encoding="utf-8", newline="") as target:
            for table in _parts(files):
                text = _csv(table, header=not rows) if as_csv else _jsonl(table)
                target.write(text)
                rows += table.num_rows
        storage.upload_file(local, uri, files.options)
    return rows


def _parts(files: OutputFiles) -> Iterator[pa.Table]:
    for number in part_numbers(files.names()):
        yield files.read_table(part_name(number))


def _jsonl(table: pa.Table) -> str:
    return "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in table.to_pylist())


def _csv(table: pa.Table, *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow(table.column_names)
    for row in table.to_pylist():
        values = _plain(row).values()
        writer.writerow([json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in values])
    return text.getvalue()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON knows: half floats become floats."""
    return {name: _number(value) for name, value in row.items()}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return float(value) if math.isfinite(value) else None  # JSON has no NaN

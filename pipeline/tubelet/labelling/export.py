"""Predictions as JSON lines, CSV or tasks of Label Studio, for tools that read no Parquet."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tubelet import storage
from tubelet.cells import defused
from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.sink import part_name, part_numbers
from tubelet.labelling.tasks import interface, tasks_json, windows_csv
from tubelet.plain_json import json_text, plain
from tubelet.storage import with_retries

WINDOWS, TASKS = ".windows.csv", ".label-studio.json"
FORMATS = (".jsonl", ".csv", WINDOWS, TASKS)


def check_target(uri: str) -> None:
    """Raises ``UserError`` where the name does not say which format is meant."""
    if not uri.endswith(FORMATS):
        raise UserError(f"--export {uri}: end the name in {' or '.join(FORMATS)}")


def export(files: OutputFiles, uri: str, *, formulas: bool = False) -> int:
    """Write all rows at the root of ``files`` to ``uri``, part by part; returns how many.

    In CSV, lists are JSON, and unless ``formulas`` are wanted no cell is one (see :func:`defused`). A name in
    ``.windows.csv`` gets when which label holds, and one in ``.label-studio.json`` tasks to import there,
    with an interface for them beside it (``.xml``). The file appears whole, or not at all.

    Raises:
        UserError: the name says none of the formats.
    """
    check_target(uri)
    if uri.endswith(TASKS):
        return _export_tasks(files, uri)
    as_csv, windows, rows = uri.endswith(".csv"), uri.endswith(WINDOWS), 0
    with tempfile.TemporaryDirectory(prefix="tubelet-export-") as folder:
        local = Path(folder) / "rows"
        with local.open("w", encoding="utf-8", newline="") as target:
            for table in _parts(files):
                if windows:
                    text = windows_csv(table, header=not rows, formulas=formulas)
                else:
                    text = _csv(table, header=not rows, formulas=formulas) if as_csv else _jsonl(table)
                target.write(text)
                rows += table.num_rows
        with_retries(lambda: storage.upload_file(local, uri, files.options))
    return rows


def _export_tasks(files: OutputFiles, uri: str) -> int:
    labels: set[str] = set()
    timeline, rows = False, 0

    def counted() -> Iterator[pa.Table]:
        nonlocal timeline, rows
        for table in _parts(files):
            rows += table.num_rows
            labels.update(table["label"].drop_null().to_pylist())
            timeline |= table["start_s"].null_count < table.num_rows
            yield table

    with tempfile.TemporaryDirectory(prefix="tubelet-export-") as folder:
        local = Path(folder) / "tasks"
        with local.open("w", encoding="utf-8") as target:
            target.writelines(tasks_json(counted()))
        page = interface(sorted(labels), timeline=timeline)
        beside = uri.removesuffix(".json") + ".xml"
        with_retries(lambda: storage.write_bytes(beside, page.encode(), files.options))
        with_retries(lambda: storage.upload_file(local, uri, files.options))
    return rows


def _parts(files: OutputFiles) -> Iterator[pa.Table]:
    for number in part_numbers(files.names()):
        yield files.read_table(part_name(number))


def _jsonl(table: pa.Table) -> str:
    return "".join(json_text(row) + "\n" for row in table.to_pylist())


def _csv(table: pa.Table, *, header: bool, formulas: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow(table.column_names)
    for row in table.to_pylist():
        values = plain(row).values()
        cells = [json_text(v) if isinstance(v, list) else v for v in values]
        writer.writerow(cells if formulas else map(defused, cells))
    return text.getvalue()

"""From a manifest and the table of copies to the manifest of the copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet.copies.table import ORIGIN_COLUMNS, SCHEMA
from tubelet.corpus.digests import digests
from tubelet.corpus.known_rows import KnownRows, spans
from tubelet.corpus.manifest import FILE_FACTS
from tubelet.inference.output import OutputFiles
from tubelet.inference.sink import part_name, part_numbers
from tubelet.video import Status

Row = dict[str, Any]


class Whole:
    """The rows of a manifest with one row per video, as the plan of copies of whole videos takes them.

    Rows of one video need not stand together.
    """

    def __init__(self, slices: Iterable[pa.Table]) -> None:
        self._slices = slices

    def __iter__(self) -> Iterator[pa.Table]:
        seen: set[int] = set()
        for table in self._slices:
            first = []
            for digest in digests(table["key"]).tolist():
                first.append(digest not in seen)
                seen.add(digest)
            rows = table.filter(pa.array(first, pa.bool_()))
            yield whole_rows(rows)


def whole_rows(rows: pa.Table) -> pa.Table:
    """``rows`` as rows of the whole videos."""
    for name, value in (("segment", 0), ("clip_start_s", None), ("clip_end_s", None)):
        if name in rows.column_names:
            place = rows.column_names.index(name)
            field = rows.schema.field(name)
            rows = rows.set_column(place, field, pa.repeat(pa.scalar(value, field.type), rows.num_rows))
    return rows


def live(slices: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Slices without the rows of what is gone: a gone segment is no reason to leave its video out."""
    for table in slices:
        yield table.filter(pc.not_equal(table["status"], str(Status.GONE)))


class Copies:
    """The table of copies, on local disk.

    Args:
        files: of the table.
        file: where to keep it.
    """

    def __init__(self, files: OutputFiles, file: Path) -> None:
        self._rows = KnownRows(file, SCHEMA)
        for number in part_numbers(files.names()):
            part = files.read_table(part_name(number))
            self._rows.add(part.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(None))
        self._rows.close()

    def of(self, rows: list[Row]) -> list[dict[int, Row]]:
        """The copies of each row's video that are of its content, by window."""
        if not self._rows.rows:
            return [{} for _ in rows]
        wanted = pa.RecordBatch.from_pydict({"key": pa.array([row["key"] for row in rows], pa.string())})
        places, owners = spans(*self._rows.find(wanted))
        taken = self._rows.gather(self._rows.rows_at(places), SCHEMA.names).to_pylist()
        found: list[dict[int, Row]] = [{} for _ in rows]
        for owner, copy in zip(owners.tolist(), taken, strict=True):
            row = rows[owner]
            if copy["key"] == row["key"] and copy["etag"] == (row["etag"] or ""):
                found[owner][copy["window"]] = copy
        return found


def schema_of(schema: pa.Schema) -> pa.Schema:
    """The manifest's schema with what is said of the originals."""
    kept = [field for field in schema if field.name not in {one.name for one in ORIGIN_COLUMNS}]
    return pa.schema([*kept, *ORIGIN_COLUMNS])


def rows_of_copies(table: pa.Table, copies: Copies, *, segments: bool) -> Iterator[Row]:
    """The rows of a slice of the manifest, about the copies where there are any."""
    rows = table.to_pylist()
    for row, found in zip(rows, copies.of(rows), strict=True):
        yield row_of_copy(row, found.get((row["segment"] or 0) if segments else 0), segment=segments)


def row_of_copy(row: Row, copy: Mapping[str, Any] | None, *, segment: bool) -> Row:
    """One row: it keeps key, labels and split, and names the copy in place of the original.

    What has no copy keeps its address, so that the error is one of a file that there is.

    Args:
        row: of the manifest.
        copy: of the table of copies.
        segment: the copy is of the row's segment only.
    """
    origin = {f"origin_{name}": row[name] for name in ("uri", "etag", "size")}
    origin |= {f"origin_{name}": row[name] for name in ("clip_start_s", "clip_end_s")}
    if copy is None or row["status"] in (Status.GONE, Status.NOT_VIDEO):
        return row | origin
    if copy["status"] == Status.ERROR:
        return row | origin | {name: copy[name] for name in ("status", "error_code", "error", "attempts")}
    file = {name: copy[name] for name, _ in FILE_FACTS}
    file |= {name: copy[f"copy_{name}"] for name in ("uri", "etag", "size")}
    said = {name: copy[name] for name in ("status", "error_code", "error", "attempts")}
    whole = {"clip_start_s": None, "clip_end_s": None} if segment else {}
    return row | origin | file | said | whole

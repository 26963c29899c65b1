"""A part that cannot be read is named, with what to do; a store that is away is no damage."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.labelling import assert_one_row_each, read_rows
from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import PredictionSink, SinkLimits, part_name
from tubelet.labelling.export import export
from tubelet.review.page import ReviewConfig, review
from tubelet.storage import DiskFullError

SCHEMA = RowShape().schema()


def add_rows(out: Path, first: int, last: int) -> PredictionSink:
    sink = PredictionSink(OutputFiles(str(out)), SCHEMA, SinkLimits(part_rows=1))
    rows = [{"key": f"k{i:05d}", "window": 0, "etag": "a", "status": "ok"} for i in range(first, last)]
    sink.add(table_of(rows, SCHEMA))
    return sink


@pytest.fixture(params=["empty", "cut", "overwritten"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An output of two parts, the first of which is damaged."""
    out = tmp_path / "out"
    add_rows(out, 0, 500)
    add_rows(out, 500, 510)
    part = out / part_name(0)
    whole = part.read_bytes()
    half = len(whole) // 2
    part.write_bytes(
        {"empty": b"", "cut": whole[:half], "overwritten": bytes(len(whole) - 8) + whole[-8:]}[request.param]
    )
    return out


def test_every_reader_names_the_part(damaged: Path, tmp_path: Path) -> None:
    named = rf"{part_name(0)} cannot be read[^\n]*: delete it and run the same `tubelet label` again"
    with pytest.raises(UserError, match=named):
        PredictionSink(OutputFiles(str(damaged)), SCHEMA)
    with pytest.raises(UserError, match=named):
        export(OutputFiles(str(damaged)), str(tmp_path / "rows.csv"))
    with pytest.raises(UserError, match=named):
        review(ReviewConfig(predictions=str(damaged), out=str(tmp_path / "page.html")))


def test_what_it_says_to_do_works(damaged: Path) -> None:
    (damaged / part_name(0)).unlink()
    sink = add_rows(damaged, 0, 500)
    assert len(sink.published) == 10
    assert_one_row_each(read_rows(str(damaged)), 510)


def test_a_full_disk_costs_no_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", out], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        add_rows(out, 0, 3)
        with pytest.raises(DiskFullError, match=r"no room to write .*part-00000001"):
            add_rows(out, 3, 5000)
        assert [path.name for path in out.iterdir()] == [part_name(0)]
        subprocess.run(["mount", "-o", "remount,size=1m", out], check=True)
        add_rows(out, 3, 5000)
        assert_one_row_each(read_rows(str(out)), 5000)
    finally:
        subprocess.run(["umount", "-l", out], check=True)

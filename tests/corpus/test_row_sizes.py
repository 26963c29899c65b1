"""Rows of videos that have keyframes alone, an hour of them: small while they wait, few in memory at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.payloads import info
from tubelet.corpus.known_rows import KnownRows
from tubelet.corpus.probing import describe
from tubelet.video.info import keyframes_s
from tubelet.video.table import PacketTable

HOUR = 90_000


def test_keyframe_times_are_packed() -> None:
    """As objects of Python they took 4 MiB a row."""
    times_s = tuple((np.arange(HOUR) / 25).tolist())
    found = describe(info(keyframes_s=times_s))["keyframes_s"]
    assert found.nbytes == 8 * HOUR
    assert tuple(found) == times_s


def test_batches_are_bounded_by_bytes(tmp_path: Path) -> None:
    schema = pa.schema([("key", pa.string()), ("keyframes_s", pa.list_(pa.float64()))])
    rows = KnownRows(tmp_path / "rows.arrow", schema)
    rows.add(
        pa.Table.from_pylist([{"key": str(i), "keyframes_s": np.zeros(HOUR)} for i in range(24)], schema)
    )
    rows.add(pa.Table.from_pylist([{"key": str(i), "keyframes_s": None} for i in range(24, 3000)], schema))
    rows.close()
    tables = [rows.table(number)[1] for number in rows.tables()]
    assert max(table.nbytes for table in tables) < 8 << 20
    assert len(tables) < 10
    assert rows.gather(np.array([2999, 0]), ["key"])["key"].to_pylist() == ["2999", "0"]


@pytest.mark.parametrize(("size_bytes", "count"), [(999, None), (1000, 1000)])
def test_no_object_has_more_keyframes_than_bytes(size_bytes: int, count: int | None) -> None:
    """An index of a few bytes can claim millions of samples."""
    numbers = np.arange(1000, dtype=np.int64)
    key = np.ones(1000, np.bool_)
    table = PacketTable(Fraction(1, 25), numbers, numbers, numbers, numbers, key, ~key, 1, True, True)
    times_s = keyframes_s(table, size_bytes)
    assert (None if times_s is None else len(times_s)) == count

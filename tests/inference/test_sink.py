"""What a plain reader sees of an output: whole parts, each place once, whoever writes and whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
from support import S3Bucket
from support.labelling import assert_one_row_each, read_rows, read_with_duckdb
from tubelet.config import UserError
from tubelet.corpus.digests import digests
from tubelet.inference.output import OutputFiles, check_or_init_output, parquet_bytes
from tubelet.inference.published import Published
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import PredictionSink, SinkLimits, part_name

SCHEMA = RowShape().schema()
AT_ONCE = SinkLimits(part_rows=1)


def rows_of(first: int, last: int, etag: str = "a", status: str = "ok") -> pa.Table:
    return table_of(
        [
            {"key": f"k{i:05d}", "window": 0, "etag": etag, "status": status, "label": etag}
            for i in range(first, last)
        ],
        SCHEMA,
    )


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    bucket: S3Bucket = request.getfixturevalue("s3")
    return bucket.uri + "/out"


def sink_of(out: str, limits: SinkLimits = AT_ONCE) -> PredictionSink:
    return PredictionSink(OutputFiles(out), SCHEMA, limits)


def test_rows_appear_in_parts_and_are_known_again(out: str) -> None:
    sink = sink_of(out)
    sink.add(rows_of(0, 10))
    sink.add(rows_of(10, 15))
    assert_one_row_each(read_rows(out), 15)
    again = sink_of(out)
    places = digests([f"k{i:05d}" for i in range(20)], [0] * 20)
    done = again.published.is_done(places, digests(["a"] * 20), retry_errors=False)
    assert done.tolist() == [True] * 15 + [False] * 5
    changed = again.published.is_done(places, digests(["b"] * 20), retry_errors=False)
    assert not changed.any()


def test_rows_wait_until_it_is_time(tmp_path: Path) -> None:
    sink = sink_of(str(tmp_path), SinkLimits(part_rows=10, first_s=1000))
    sink.add(rows_of(0, 9))
    assert not list(tmp_path.iterdir())
    sink.add(rows_of(9, 10))
    assert len(read_rows(str(tmp_path))) == 10
    sink.add(rows_of(10, 12))
    sink.close()
    assert len(read_rows(str(tmp_path))) == 12


def test_what_is_gathered_is_not_summed_again_for_each_new_row(tmp_path: Path) -> None:
    """Else a job's driver slows down with the square of what waits to be published."""
    sink = sink_of(str(tmp_path), SinkLimits(first_s=1000, most_s=1000))
    rows = rows_of(0, 1)
    few_s, many_s = (_cpu_s_of_adds(sink, rows, count) for count in (200, 2000))
    assert many_s < 30 * max(few_s, 0.01)


def _cpu_s_of_adds(sink: PredictionSink, rows: pa.Table, count: int) -> float:
    began_s = time.process_time()
    for _ in range(count):
        sink.add(rows)
    return time.process_time() - began_s


def test_newer_row_takes_the_place_of_the_older(out: str) -> None:
    sink = sink_of(out)
    sink.add(rows_of(0, 10))
    sink.add(rows_of(10, 20, status="error"))
    names = OutputFiles(out).names()
    newer = sink_of(out, SinkLimits(first_s=1000))
    newer.add(rows_of(5, 15, etag="b"))
    newer.add(rows_of(20, 22, etag="b"))
    newer.close()
    rows = read_rows(out)
    assert_one_row_each(rows, 22)
    assert [row["etag"] for row in rows] == ["a"] * 5 + ["b"] * 10 + ["a"] * 5 + ["b"] * 2
    assert set(names) < set(OutputFiles(out).names())


def test_errors_are_done_unless_they_are_to_be_tried_again(tmp_path: Path) -> None:
    sink_of(str(tmp_path)).add(rows_of(0, 2, status="error"))
    published = sink_of(str(tmp_path)).published
    places, contents = digests(["k00000", "k00001"], [0, 0]), digests(["a", "a"])
    assert published.is_done(places, contents, retry_errors=False).all()
    assert not published.is_done(places, contents, retry_errors=True).any()


def test_two_writers_never_publish_a_row_twice(out: str) -> None:
    """A job that lost its lock without noticing goes on writing: the part number it wants is taken."""
    one, two = sink_of(out), sink_of(out)
    one.add(rows_of(0, 10))
    two.add(rows_of(5, 15))
    one.add(rows_of(10, 20))
    two.add(rows_of(18, 25))
    assert_one_row_each(read_rows(out), 25)


def test_replacement_keeps_what_another_writer_replaced_meanwhile(out: str) -> None:
    """A job that lost its lock and woke up in the middle of a replacement."""
    sink_of(out).add(rows_of(0, 6))
    sleeper, other = sink_of(out), sink_of(out)
    names = iter(["b"])

    def wake() -> None:
        if next(names, None):
            other.add(rows_of(0, 2, "b"))

    sleeper.files.check_owner = wake  # called between reading the part and writing it
    sleeper.add(rows_of(2, 4, "c"))
    rows = read_rows(out)
    assert_one_row_each(rows, 6)
    assert [row["etag"] for row in rows] == ["b", "b", "c", "c", "a", "a"]


def test_lost_answer_to_a_put_is_no_second_part(tmp_path: Path) -> None:
    """The put arrived, its answer did not, so the client put again and was told that the name is taken."""
    files = OutputFiles(str(tmp_path))
    create = files.create

    def twice(name: str, data: bytes) -> bool:
        create(name, data)
        return create(name, data)

    files.create = twice  # type: ignore[method-assign]
    sink = PredictionSink(files, SCHEMA, AT_ONCE)
    sink.add(rows_of(0, 3))
    sink.add(rows_of(3, 6))
    assert_one_row_each(read_rows(str(tmp_path)), 6)
    assert len(list(tmp_path.glob("part-*"))) == 2


def test_owner_who_lost_the_output_publishes_nothing(tmp_path: Path) -> None:
    def lost() -> None:
        raise UserError("taken over")

    sink = PredictionSink(OutputFiles(str(tmp_path), check_owner=lost), SCHEMA, AT_ONCE)
    with pytest.raises(UserError, match="taken over"):
        sink.add(rows_of(0, 3))
    assert not list(tmp_path.glob("*.parquet"))


def test_interval_grows_with_the_job_and_with_the_cost_of_writing() -> None:
    limits = SinkLimits()
    assert limits.interval_s(0, 0) == 2
    assert limits.interval_s(1000, 0) == 20
    assert limits.interval_s(1e6, 0) == 120
    assert limits.interval_s(0, 10) == 200


def test_another_model_is_refused_or_moved_aside(out: str) -> None:
    files = OutputFiles(out)
    check_or_init_output(files, {"model": "m1", "sampling": "x"})
    sink_of(out).add(rows_of(0, 5))
    check_or_init_output(files, {"model": "m1", "sampling": "x"})
    with pytest.raises(UserError, match=r"model 'm1' is now 'm2'[\s\S]*--new-version"):
        check_or_init_output(files, {"model": "m2", "sampling": "x"})
    check_or_init_output(files, {"model": "m2", "sampling": "x"}, new_version=True)
    assert not [name for name in files.names() if name.endswith(".parquet")]
    assert len(sink_of(out).published) == 0
    version = next(name for name in OutputFiles(out + "/_versions").names() if not name.startswith("."))
    assert len(read_rows(f"{out}/_versions/{version}")) == 5


def test_foreign_parquet_files_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "other.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="choose another --out"):
        check_or_init_output(OutputFiles(str(tmp_path)), {"model": "m"})


def test_all_null_columns_keep_their_types_for_plain_readers(tmp_path: Path) -> None:
    sink = sink_of(str(tmp_path))
    sink.add(rows_of(0, 2, status="error").set_column(7, "label", pa.nulls(2, pa.string())))
    sink.add(rows_of(2, 4))
    assert read_with_duckdb(str(tmp_path)).column("label").to_pylist() == [None, None, "a", "a"]


def _write_for_ever(out: str, seed: int) -> None:
    """New rows and replacements in turn, small parts, as fast as it goes."""
    draw = random.Random(seed)
    while True:
        sink = sink_of(out)
        start = draw.randrange(400)
        sink.add(rows_of(start, start + 7, etag=f"{seed}-{draw.randrange(10**9)}"))


def test_reader_sees_every_place_once_while_writers_are_killed(tmp_path: Path) -> None:
    """SIGKILL at random moments, a reader that looks all the time: no duplicate, no half file, no loss."""
    out = str(tmp_path / "out")
    sink_of(out).add(rows_of(0, 3))
    context = multiprocessing.get_context("fork")
    draw, seen, attempt = random.Random(7), 0, 0
    # Ten writers as a rule; on a busy machine more, until enough was written to look at.
    while attempt < 10 or (seen <= 50 and attempt < 100):
        attempt += 1
        writer = context.Process(target=_write_for_ever, args=(out, attempt))
        writer.start()
        end_s = time.monotonic() + draw.uniform(0.1, 0.6)
        while time.monotonic() < end_s:
            rows = read_rows(out)
            assert_one_row_each(rows, len(rows))
            assert len(rows) >= seen, "a published row is gone"
            seen = len(rows)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
    assert seen > 50


def test_index_of_nothing() -> None:
    published = Published.of([])
    assert published.locate(digests(["a"], [0])).tolist() == [-1]
    assert not published.is_done(digests(["a"], [0]), digests(["x"]), retry_errors=False).any()


def test_an_outage_is_tried_again_until_it_has_come_in_three_runs(tmp_path: Path) -> None:
    """And in a table of before attempts were counted it counts as one."""
    files = OutputFiles(str(tmp_path))
    places, contents = digests(["a"], [0]), digests(["1"])
    row = {"key": "a", "window": 0, "etag": "1", "status": "error", "error_code": "timeout"}
    old = SCHEMA.remove(SCHEMA.get_field_index("attempts"))
    files.create(part_name(0), parquet_bytes(table_of([row], old)))
    for attempts in (1, 2, 3):
        sink = PredictionSink(files, SCHEMA)
        assert sink.published.attempts.tolist() == [attempts]
        done = sink.published.is_done(places, contents, retry_errors=False)
        assert done.tolist() == [attempts == 3]
        sink.add(table_of([row], SCHEMA))
        sink.close()
    sink = PredictionSink(files, SCHEMA)
    assert not sink.published.is_done(places, contents, retry_errors=True).any()
    sink.add(table_of([row | {"status": "ok", "error_code": None}], SCHEMA))
    sink.close()
    assert [found["attempts"] for found in read_rows(str(tmp_path))] == [0]

"""What is left to do: the anti-join, windows, segments, several models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.labelling import write_video
from tubelet import storage
from tubelet.config import UserError, load_settings
from tubelet.corpus.manifest import SCHEMA, key_of
from tubelet.corpus.probing import Prober
from tubelet.error_rate import ErrorRate
from tubelet.inference.output import OutputFiles
from tubelet.inference.plan import Plan, make_plan, read_shard
from tubelet.inference.published import Published
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.second_look import SecondLook
from tubelet.inference.windows import Windows, seconds
from tubelet.labelling.intervals import intervals_table, merge_windows
from tubelet.labelling.prepare import refuse_segments
from tubelet.video import Limits


def manifest_of(*rows: dict[str, Any]) -> pa.Table:
    filled = []
    for i, row in enumerate(rows):
        path = f"v{i}.mp4"
        base = {"key": key_of(path), "segment": 0, "uri": f"/x/{path}", "path": path, "etag": f"e{i}"}
        filled.append(base | {"size": 10, "status": "ok", "width": 640, "height": 360} | row)
    return pa.Table.from_pylist(filled, schema=SCHEMA)


def published_of(rows: list[dict[str, Any]]) -> Published:
    return Published.of([(0, table_of(rows, RowShape().schema()))])


def requests_of(plan: Plan, files: OutputFiles) -> list[dict[str, Any]]:
    return [row for shard in plan.shards for row in read_shard(files.read(shard.name)).to_pylist()]


@pytest.fixture
def files(tmp_path: Path) -> OutputFiles:
    return OutputFiles(str(tmp_path))


def test_only_new_and_changed_objects_are_left(files: OutputFiles) -> None:
    manifest = manifest_of({}, {}, {}, {"status": "gone"})
    keys = manifest["key"].to_pylist()
    published = published_of(
        [
            {"key": keys[0], "window": 0, "etag": "e0", "status": "ok"},
            {"key": keys[1], "window": 0, "etag": "older", "status": "ok"},
        ]
    )
    plan = make_plan([manifest], [published], files, "_plan")
    assert [row["key"] for row in requests_of(plan, files)] == keys[1:3]
    assert (plan.objects, plan.requests, plan.already_done) == (3, 2, [1])


def test_errors_of_the_index_are_not_fetched_again(files: OutputFiles) -> None:
    manifest = manifest_of({}, {"status": "error", "error_code": "open_error", "error": "no video"})
    plan = make_plan([manifest], [Published.of([])], files, "_plan")
    (errors,) = plan.known_errors
    assert read_shard(files.read(errors.name)).select(["error_code", "start_s", "models"]).to_pylist() == [
        {"error_code": "open_error", "start_s": None, "models": 1}
    ]
    assert (plan.requests, plan.reasons, plan.examples) == (1, {"open_error": 1}, {"open_error": "no video"})


def test_what_the_index_could_not_read_is_decoded_and_what_is_no_video_is_left_out(
    files: OutputFiles,
) -> None:
    manifest = manifest_of(
        {},
        {"status": "error", "error_code": "timeout", "error": "not done after 60 s"},
        {"status": "not_video", "error_code": "not_video", "error": "no video: text"},
    )
    plan = make_plan([manifest], [Published.of([])], files, "_plan")
    assert [row["key"] for row in requests_of(plan, files)] == manifest["key"].to_pylist()[:2]
    assert (plan.objects, plan.rows, plan.known_errors) == (2, 2, [])


def test_what_the_index_could_not_read_gets_its_windows(files: OutputFiles, tmp_path: Path) -> None:
    """Its duration is not in the manifest: the object is looked into, in this run and not for good."""
    write_video(tmp_path / "long.mp4", 1, frames=40)
    (tmp_path / "broken.mp4").write_bytes(b"\x00" * 512)
    info = storage.stat(tmp_path / "long.mp4")
    assert info is not None
    lost = {"status": "error", "error_code": "timeout", "error": "not done after 60 s"}
    there = {"uri": str(tmp_path / "long.mp4"), "etag": info.etag, "size": info.size_bytes}
    manifest = manifest_of(
        lost | there,
        lost | {"uri": str(tmp_path / "broken.mp4"), "etag": None, "size": 512},
        lost | {"uri": str(tmp_path / "gone.mp4")},
    )
    windows, keys = Windows(window_s=2, stride_s=1), manifest["key"].to_pylist()

    def plan_after(*rows: dict[str, Any]) -> Plan:
        with Prober(2, storage.DEFAULT_OPTIONS, Limits()) as prober:
            look = SecondLook(prober)
            return make_plan([manifest], [published_of([*rows])], files, "_plan", windows=windows, look=look)

    plan = plan_after()
    made = [(row["key"], row["window"], row["clip_start_s"]) for row in requests_of(plan, files)]
    assert made == [(keys[0], 0, 0.0), (keys[0], 1, 1.0), (keys[0], 2, 2.0)]
    assert plan.reasons == {"open_error": 1, "not_found": 1}
    assert plan.rows == 5
    # What all runs failed at is not opened again, and what is there is not made again.
    failed = {"window": 0, "status": "error", "error_code": "not_found", "attempts": 3, "etag": "e2"}
    done = {"key": keys[0], "window": 1, "status": "ok", "etag": info.etag}
    broken = {"key": keys[1], "window": 0, "status": "error", "error_code": "open_error", "etag": ""}
    plan = plan_after(done, broken, failed | {"key": keys[2]})
    assert [row["window"] for row in requests_of(plan, files)] == [0, 2]
    assert (plan.already_done, plan.already_failed, plan.reasons) == ([3], [2], {})


def test_each_model_gets_what_it_lacks(files: OutputFiles) -> None:
    manifest = manifest_of({}, {}, {})
    rows = [
        {"key": key, "window": 0, "etag": f"e{i}", "status": "ok"}
        for i, key in enumerate(manifest["key"].to_pylist())
    ]
    plan = make_plan([manifest], [published_of(rows[:2]), published_of(rows[:1])], files, "_plan")
    assert [row["models"] for row in requests_of(plan, files)] == [0b10, 0b11]
    assert plan.already_done == [2, 1]


def test_segments_are_windows_of_their_object(files: OutputFiles) -> None:
    key = key_of("v.mp4")
    manifest = manifest_of(
        {"key": key, "segment": 0, "clip_start_s": 0.0, "clip_end_s": 2.0},
        {"key": key, "segment": 1, "clip_start_s": 2.0, "clip_end_s": 5.0},
    )
    plan = make_plan([manifest], [Published.of([])], files, "_plan")
    assert [(r["window"], r["clip_start_s"], r["clip_end_s"]) for r in requests_of(plan, files)] == [
        (0, 0.0, 2.0),
        (1, 2.0, 5.0),
    ]
    assert (plan.objects, plan.rows) == (1, 2)
    with pytest.raises(UserError, match="leave --window out"):
        refuse_segments([manifest])
    refuse_segments([manifest_of({}, {}), manifest_of({"segment": 1, "status": "gone"})])


def test_large_plans_are_cut_into_shards(files: OutputFiles) -> None:
    manifest = manifest_of(*({} for _ in range(9000)))
    plan = make_plan([manifest], [Published.of([])], files, "_plan")
    assert len(plan.shards) == 3
    assert [row["request"] for row in requests_of(plan, files)] == list(range(9000))


@pytest.mark.parametrize(
    ("duration_s", "expected"),
    [
        (5.0, [(0, 2), (1, 3), (2, 4), (3, 5)]),
        (2.0, [(0, 2)]),
        (0.7, [(0, 0.7)]),
        (4.5, [(0, 2), (1, 3), (2, 4), (3, 4.5)]),
        (3.0000000001, [(0, 2), (1, 3)]),
    ],
)
def test_windows_cover_the_video(duration_s: float, expected: list[tuple[float, float]]) -> None:
    found = Windows(window_s=2, stride_s=1).of(duration_s)
    assert np.allclose(found, expected)


def test_stride_longer_than_the_window_is_refused() -> None:
    with pytest.raises(UserError, match="lower --stride"):
        load_settings(Windows, {"window_s": 1, "stride_s": 2})


@pytest.mark.parametrize(("text", "value"), [("2s", 2), ("500ms", 0.5), ("1.5", 1.5), ("2m", 120)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


def window_rows(labels: str, window_s: float = 2, stride_s: float = 1) -> list[dict[str, Any]]:
    return [
        {
            "key": "k",
            "uri": "u",
            "window": i,
            "start_s": i * stride_s,
            "end_s": i * stride_s + window_s,
            "label": label,
            "score": 0.5,
            "status": "error" if label == "!" else "ok",
        }
        for i, label in enumerate(labels)
    ]


def test_windows_of_one_label_merge() -> None:
    found = [(i.label, i.start_s, i.end_s, i.windows) for i in merge_windows(window_rows("aaabbbb"))]
    assert found == [("a", 0, 3.5, 3), ("b", 3.5, 8, 4)]


def test_failed_windows_break_an_interval() -> None:
    found = [(i.label, i.start_s, i.end_s) for i in merge_windows(window_rows("aa!a"))]
    assert found == [("a", 0, 2.5), ("a", 3.5, 5)]


def test_intervals_of_many_videos_are_in_order() -> None:
    rows = [row | {"key": key} for key in ("b", "a") for row in window_rows("ab")]
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("uri", pa.string()),
            ("window", pa.int32()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("label", pa.string()),
            ("score", pa.float32()),
            ("status", pa.string()),
        ]
    )
    table = intervals_table([pa.Table.from_pylist(rows, schema=schema)])
    assert table["key"].to_pylist() == ["a", "a", "b", "b"]
    assert table["label"].to_pylist() == ["a", "b", "a", "b"]


def test_guard_names_the_commonest_reasons() -> None:
    guard = ErrorRate(0.2, "mend it")
    for i in range(999):
        guard.see("timeout" if i % 4 == 0 else None, "not done after 60 s")
    with pytest.raises(UserError, match=r"251 of the last 1000 .*251 timeout \(not done after 60 s\)"):
        guard.see("timeout")


def test_guard_looks_at_the_last_thousand_only() -> None:
    guard = ErrorRate(0.2, "mend it")
    for i in range(5000):
        guard.see("crash" if i % 1000 < 200 else None)


def test_guard_names_the_reasons_of_the_last_thousand_only() -> None:
    guard = ErrorRate(0.2, "mend it")
    for i in range(5000):
        guard.see("crash" if i % 1000 < 200 else None)
    for _ in range(200):
        guard.see("io_error", "gone")  # one for each crash that leaves the window
    with pytest.raises(UserError, match=r"^201 of the last 1000 [^:]*: 201 io_error \(gone\)\.\n"):
        guard.see("io_error", "gone")


def test_guard_judges_a_small_job_at_its_end() -> None:
    guard = ErrorRate(0.2, "mend it")
    guard.judge(10, {"crash": 2}, {})
    guard.judge(3, {"crash": 3}, {})
    with pytest.raises(UserError, match="3 of the last 10"):
        guard.judge(10, {"crash": 3}, {})

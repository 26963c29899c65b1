"""Rows per processor-second of the driver of ``tubelet label``, which is one process however many nodes work.

The plan, the graph, the sink and the tally are those of a real job; the workers answer at once, from no
video at all. What is measured is the user and system time of this process, its own memory (USS) at its
highest, and how soon after its start the first row is there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from tubelet_jobs.common import connect_ray, say

CLASSES = 10
_SLICE = 50_000
_LOOK_EVERY_S = 2.0


def measure(objects: int) -> dict[str, Any]:
    """Plan and label ``objects`` that do not exist; figures of the driver."""
    import ray
    from tubelet.clips import ClipSpec
    from tubelet.corpus.manifest import ManifestSlices
    from tubelet.error_rate import ErrorRate
    from tubelet.inference.driver import Driver
    from tubelet.inference.graph import plan_resources
    from tubelet.inference.output import OutputFiles
    from tubelet.inference.plan import make_plan
    from tubelet.inference.schema import RowShape
    from tubelet.inference.sink import PredictionSink
    from tubelet.inference.source import NOT_NEEDED
    from tubelet.inference.workers import DecodeJob
    from tubelet.labelling.report import Tally

    say(f"bench label: the driver alone, {objects} objects")
    connect_ray(None)
    with tempfile.TemporaryDirectory(prefix="tubelet-bench-") as name:
        manifest = _manifest(Path(name), objects)
        files = OutputFiles(f"{name}/out")
        sink = PredictionSink(files, RowShape({"label": CLASSES}).schema())
        began_s, job_s, first_s = time.process_time(), time.monotonic(), list[float]()
        before_bytes = _own_bytes()
        plan = make_plan(ManifestSlices.open(manifest, without=NOT_NEEDED), [sink.published], files, "_plan")
        plan_s = time.process_time() - began_s
        decode = DecodeJob((ClipSpec(),))
        layout = plan_resources(ray.cluster_resources(), decode, plan.requests)
        driver, tally = Driver(plan, files, [sink], ErrorRate(0.2, "")), Tally()
        highest_bytes, looked_s, look_cpu_s = _own_bytes(), time.monotonic(), 0.0

        def on_rows(number: int, rows: pa.Table) -> None:
            nonlocal highest_bytes, looked_s, look_cpu_s
            tally.add(rows)
            if not first_s:
                first_s.append(time.monotonic() - job_s)
            if time.monotonic() - looked_s > _LOOK_EVERY_S:
                began_s = time.thread_time()
                highest_bytes, looked_s = max(highest_bytes, _own_bytes()), time.monotonic()
                look_cpu_s += time.thread_time() - began_s

        driver.on_rows = on_rows
        began_s, started_s = time.process_time(), time.monotonic()
        driver.run(decode, _nothing, layout, name="label", stage=Instant)
        # Looking at its own memory takes tens of milliseconds, which no job has.
        run_s, wall_s = time.process_time() - began_s - look_cpu_s, time.monotonic() - started_s
    assert tally.ok == objects, f"{tally.ok} rows for {objects} objects"
    return {
        "bench": "label",
        "peer": "driver",
        "videos": objects,
        "rows_per_cpu_s": objects / (plan_s + run_s),
        "plan_cpu_s": plan_s,
        "run_cpu_s": run_s,
        "run_wall_s": wall_s,
        "first_row_s": first_s[0],
        "uss_mib": max(highest_bytes, _own_bytes()) / 2**20,
        "uss_before_mib": before_bytes / 2**20,
    }


def _own_bytes() -> int:
    return int(psutil.Process().memory_full_info().uss)


def _manifest(folder: Path, objects: int) -> str:
    from tubelet.corpus.manifest import SCHEMA
    from tubelet.corpus.publication import manifest_writer

    place = str(folder / "manifest")
    with manifest_writer(place, SCHEMA) as write:
        for first in range(0, objects, _SLICE):
            rows = _rows(range(first, min(first + _SLICE, objects)))
            missing = [field for field in SCHEMA if field.name not in rows.column_names]
            for field in missing:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
            write(rows.select(SCHEMA.names))
    return place


def _rows(numbers: range) -> pa.Table:
    """Of a manifest, as an index makes them."""
    from tubelet.corpus.manifest import key_of

    count = len(numbers)
    paths = [f"some/folder/of/a/bucket/video-{number:08d}.mp4" for number in numbers]
    columns: dict[str, Any] = {
        "key": [key_of(path) for path in paths],
        "segment": np.zeros(count, np.int32),
        "uri": [f"s3://bucket/{path}" for path in paths],
        "path": paths,
        "etag": [f"{number:032x}" for number in numbers],
        "size": np.full(count, 1 << 20),
        "status": ["ok"] * count,
        "split": ["train"] * count,
        "width": np.full(count, 340, np.int32),
        "height": np.full(count, 256, np.int32),
        "duration_s": np.full(count, 10.0),
    }
    return pa.table(columns)


def _nothing() -> list[Any]:
    return []


class Instant:
    """In place of decoding and predicting: rows with five labels for each request of a task."""

    def __init__(self, decode: Any, read: Callable[[pa.Table], Iterator[pa.Table]], *more: object) -> None:
        del decode, more
        self._read = read

    def __call__(self, task: pa.Table) -> Iterator[dict[str, Any]]:
        """The answers to the requests of one task."""
        from tubelet.inference.cells import cells_of

        yield cells_of([pa.concat_tables([_answers(requests) for requests in self._read(task)])])


def _answers(requests: pa.Table) -> pa.Table:
    from tubelet.inference.schema import RowShape, table_of

    one = {
        "status": "ok",
        "score": 0.5,
        "topk_labels": [f"class {i}" for i in range(5)],
        "topk_scores": [0.5, 0.2, 0.1, 0.1, 0.1],
        "views": 1,
        "clip_times_s": [0.1 * i for i in range(32)],
        "model": "model",
        "sampling": "32x2@224 of 256 views=1x1",
        "attempts": 0,
    }
    schema = RowShape({"label": CLASSES}).schema()
    table = table_of([one], schema).take(pa.array(np.zeros(requests.num_rows, np.int64)))
    names = pa.array([f"class {i}" for i in range(CLASSES)])
    labels = names.take(pa.array(requests["request"].to_numpy() % CLASSES))
    columns = {name: requests[name] for name in ("key", "window", "uri", "etag")} | {"label": labels}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), schema.field(name), values)
    for name in ("decode_s", "predict_s"):
        table = table.append_column(name, pa.array(np.full(table.num_rows, 0.01)))
    return table.append_column("request", requests["request"])

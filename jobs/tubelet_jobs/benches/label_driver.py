"""Rows per processor-second of the driver of ``tubelet label``, which is one process however many nodes work.

The plan, the graph, the sink and the tally are those of a real job; the workers answer at once, from no
video at all. What is measured is the user and system time of this process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tubelet_jobs.common import connect_ray, say

CLASSES = 10


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
        began_s = time.process_time()
        plan = make_plan(ManifestSlices.open(manifest, without=NOT_NEEDED), [sink.published], files, "_plan")
        plan_s = time.process_time() - began_s
        decode = DecodeJob((ClipSpec(),))
        layout = plan_resources(ray.cluster_resources(), decode, plan.requests)
        driver, tally = Driver(plan, files, [sink], ErrorRate(0.2, "")), Tally()
        driver.on_rows = lambda number, rows: tally.add(rows)
        began_s, started_s = time.process_time(), time.monotonic()
        driver.run(decode, _nothing, layout, name="label", stage=Instant)
        run_s, wall_s = time.process_time() - began_s, time.monotonic() - started_s
    assert tally.ok == objects, f"{tally.ok} rows for {objects} objects"
    return {
        "bench": "label",
        "peer": "driver",
        "videos": objects,
        "rows_per_cpu_s": objects / (plan_s + run_s),
        "plan_cpu_s": plan_s,
        "run_cpu_s": run_s,
        "run_wall_s": wall_s,
    }


def _manifest(folder: Path, objects: int) -> str:
    from tubelet.corpus.manifest import key_of, write_manifest

    paths = [f"some/folder/of/a/bucket/video-{number:08d}.mp4" for number in range(objects)]
    columns: dict[str, Any] = {
        "key": [key_of(path) for path in paths],
        "segment": np.zeros(objects, np.int32),
        "uri": [f"s3://bucket/{path}" for path in paths],
        "path": paths,
        "etag": [f"{number:032x}" for number in range(objects)],
        "size": np.full(objects, 1 << 20),
        "status": ["ok"] * objects,
        "split": ["train"] * objects,
        "width": np.full(objects, 340, np.int32),
        "height": np.full(objects, 256, np.int32),
        "duration_s": np.full(objects, 10.0),
    }
    write_manifest(pa.table(columns), str(folder / "manifest"))
    return str(folder / "manifest")


def _nothing() -> list[Any]:
    return []


class Instant:
    """In place of decoding and predicting: rows with five labels for each request of a task."""

    def __init__(self, decode: Any, read: Callable[[pa.Table], Iterator[pa.Table]], *more: object) -> None:
        del decode, more
        self._read = read

    def __call__(self, task: pa.Table) -> Iterator[dict[str, Any]]:
        """The answers to the requests of one task."""
        from tubelet.inference.predictor import cells_of

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

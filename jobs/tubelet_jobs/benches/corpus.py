"""How the corpus grows: a bucket without bytes is listed, split, written, read, updated and planned.

Each step runs in a process of its own, which tells its time and the most memory that was its own (USS). The
verdicts on the videos lie there as a run leaves them that was stopped before its last line, so that nothing
has to be opened.

Measured on one of two cores, all objects labelled, 8 of 10 to train on (CPU seconds, and MB of USS with all
imports; torch and its neighbours are 245 MB of "train planning"; with objects of Python "duplicates" took
15.7 / 561 and 430 / 6,157):

    objects                 100,000       1,000,000
    list, split, write      12.5 / 217    110.2 / 244
    report                   1.9 / 142      7.4 / 202
    read whole               1.6 / 174      4.9 / 772
    read in slices           1.4 / 128      5.2 / 205
    train planning           7.9 / 361     19.3 / 900
    label planning           3.7 / 159     18.2 / 246
    update, 1% changed      15.1 / 188    116.9 / 251
    duplicates, near         6.3 / 258     76.0 / 961

By these, 100 million objects take 3 hours of one core to list, split and write, as long to update, and half
an hour to plan labels, in 3 to 10 GB: 30 to 100 bytes per object (digests, and what allocators keep). What
is held row by row binds first: the examples of `train`, 600 bytes per object (60 GB; and Arrow puts no more
than 2 GiB of text into one piece, which 25 million addresses fill), and whole reads, 670 bytes per row. Then
it is the store: at 1,000 keys per request the listing is 100,000 requests, and to open each object takes at
least three.

Example: python -m tubelet_jobs.benches.corpus 100000 1000000
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_SLICE = 50_000
_CLASSES = 400
_KEYFRAMES = 20
_SAMPLE_S = 0.05
_CHANGED = 100  # one object of so many changes before the update
# Of so many objects one is a copy of one before, and one is one before, encoded again.
_COPIED = 20
_FAINT_BITS = 3  # of 64 that differ, in each hash of the latter


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Time and peak USS of this process meanwhile."""
    import psutil

    process, stop = psutil.Process(), threading.Event()
    found: dict[str, float] = {"uss_mb": 0.0}

    def sample() -> None:
        while not stop.wait(_SAMPLE_S):
            found["uss_mb"] = max(found["uss_mb"], process.memory_full_info().uss / 1e6)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    wall_s, cpu_s = time.monotonic(), time.process_time()
    yield found
    found["wall_s"], found["cpu_s"] = time.monotonic() - wall_s, time.process_time() - cpu_s
    stop.set()
    thread.join()


def _measured(work: Callable[[str], None], folder: str) -> dict[str, float]:
    with _watched() as found:
        work(folder)
    return {name: round(value, 2) for name, value in found.items()}


# ---- the steps


def _index(folder: str) -> None:
    from tubelet.corpus.index import IndexConfig, index_corpus

    update = Path(folder, "manifest").joinpath("_manifest.json").exists()
    listing = f"{folder}/listing{'2' if update else ''}.parquet"
    config = IndexConfig(
        src=f"{folder}/videos", out=f"{folder}/manifest", labels=("folders",), listing=listing, update=update
    )
    summary = index_corpus(config)
    assert summary.probed == 0, f"{summary.probed} objects were opened"


def _read(folder: str) -> None:
    from tubelet.corpus.manifest import read_manifest

    read_manifest(f"{folder}/manifest", without=("keyframes_s",))


def _slices(folder: str) -> None:
    from tubelet.corpus.manifest import ManifestSlices

    for _ in ManifestSlices.open(f"{folder}/manifest"):
        pass


def _report(folder: str) -> None:
    from tubelet.review.corpus_page import corpus_page

    corpus_page(f"{folder}/manifest", {})


def _plan_training(folder: str) -> None:
    from tubelet.training.build import plan_of
    from tubelet.training.plan import BatchShape
    from tubelet.training.prepare import prepare
    from tubelet.training.request import Request

    from tubelet_jobs.recipes import load_recipe

    recipe = load_recipe("tiny")
    prepared = prepare(Request(manifest=f"{folder}/manifest", out=f"{folder}/run", recipe=recipe))
    prepared.split_sizes()
    plan = plan_of(prepared)
    for _ in plan.blocks(0, 1, BatchShape(recipe.batch, 1)):
        pass


def _plan_labels(folder: str) -> None:
    from tubelet.corpus.manifest import ManifestSlices
    from tubelet.inference.output import OutputFiles
    from tubelet.inference.plan import make_plan
    from tubelet.inference.schema import RowShape
    from tubelet.inference.sink import PredictionSink
    from tubelet.inference.source import NOT_NEEDED, fingerprint_of

    manifest = ManifestSlices.open(f"{folder}/manifest", without=NOT_NEEDED)
    fingerprint_of(manifest, folder)
    files = OutputFiles(f"{folder}/labels")
    sink = PredictionSink(files, RowShape({"label": _CLASSES}).schema())
    make_plan(manifest, [sink.published], files, "_plan")


def _duplicates(folder: str) -> None:
    from tubelet.corpus.marking import marked_tables
    from tubelet.storage import DEFAULT_OPTIONS

    def look(rows: Any) -> Iterator[Any]:
        raise AssertionError(f"{next(iter(rows))} was opened")

    manifest = f"{folder}/manifest"
    marked, tables = marked_tables(manifest, manifest, "near", look, together=True, options=DEFAULT_OPTIONS)
    rows = sum(table.num_rows for table in tables)
    copies = 2 * rows // _COPIED - 2
    sys.stderr.write(f"{marked.duplicates} of {copies} copies among {rows} videos were found\n")
    assert copies // 2 <= marked.duplicates <= copies


_STEPS: dict[str, Callable[[str], None]] = {
    "list, split, write": _index,
    "report": _report,
    "read": _read,
    "read in slices": _slices,
    "train planning": _plan_training,
    "label planning": _plan_labels,
    "duplicates": _duplicates,
    "update, 1% changed": _index,
}


def _make(folder: Path, objects: int) -> None:
    """A listing before and after, and the verdicts on all objects of both."""
    import pyarrow.parquet as pq
    from tubelet.corpus.probed import verdict_schema

    from tubelet_jobs.common import say

    say(f"{objects} objects")
    staging = folder / "manifest" / "_staging"
    staging.mkdir(parents=True)
    for number in range(_CLASSES):  # which folder is a class is asked of the store
        (folder / "videos" / f"class-{number:03d}").mkdir(parents=True)
    writers: dict[str, Any] = {}
    for first in range(0, objects, _SLICE):
        for name, listing, verdicts in _slice_of(folder / "videos", first, min(_SLICE, objects - first)):
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", listing.schema)
            writers[name].write_table(listing)
            target = staging if name == "listing" else folder
            pq.write_table(verdicts.cast(verdict_schema()), target / f"probed-{name}-{first}.parquet")
            if name == "listing":
                _add_fingerprints(writers, folder / "manifest" / "_notes", verdicts, first)
    for writer in writers.values():
        writer.close()


def _add_fingerprints(writers: dict[str, Any], notes: Path, verdicts: Any, first: int) -> None:
    """What tells duplicates, as if all videos had been read."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tubelet.corpus.likeness import HASHES

    count, draw = verdicts.num_rows, np.random.default_rng(first)
    numbers = np.arange(first, first + count)
    turn = np.where(numbers < _COPIED, 1, numbers % _COPIED)
    # Of every twenty the first shows what one before shows, and so does the last, encoded again.
    before = draw.integers(0, np.maximum(numbers // _COPIED, 1)) * _COPIED + draw.integers(
        1, _COPIED - 1, count
    )
    shows = np.where((turn == 0) | (turn == _COPIED - 1), before, numbers)
    again = np.flatnonzero(turn == _COPIED - 1)
    bits = _hashes_of(shows, HASHES)
    flipped = np.uint64(1) << draw.integers(0, 64, (_FAINT_BITS, len(again), HASHES)).astype(np.uint64)
    bits[again] ^= np.bitwise_xor.reduce(flipped, axis=0)
    same = np.where(turn == _COPIED - 1, numbers, shows)
    digests = [f"{number:032x}" for number in same.tolist()]
    values = {"bits": bits, "said": np.ones(bits.shape, np.bool_)}
    lists = {n: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), HASHES) for n, v in values.items()}
    columns = {"key": verdicts["key"], "etag": verdicts["etag"], "digest": pa.array(digests, pa.string())}
    table = pa.table({**columns, **{n: one.cast(pa.list_(one.type.value_type)) for n, one in lists.items()}})
    if "notes" not in writers:
        notes.mkdir(parents=True)
        writers["notes"] = pq.ParquetWriter(notes / "fingerprints.parquet", table.schema)
    writers["notes"].write_table(table)


def _hashes_of(numbers: Any, count: int) -> Any:
    """As good as random, and the same whenever they are asked for."""
    import numpy as np

    found = (numbers[:, None] * count + np.arange(count)).astype(np.uint64)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        found = (found ^ found >> np.uint64(30)) * np.uint64(factor)
    return found ^ found >> np.uint64(31)


def _slice_of(src: Path, first: int, count: int) -> Iterator[tuple[str, Any, Any]]:
    import numpy as np
    import pyarrow as pa
    from tubelet.corpus.manifest import key_of

    numbers = range(first, first + count)
    paths = [f"class-{i % _CLASSES:03d}/video-{i:09d}-of-a-bucket.mp4" for i in numbers]
    keyframes = pa.array([[2.5 * k for k in range(_KEYFRAMES)]] * count)
    for name in ("listing", "listing2"):
        changed = [name == "listing2" and i % _CHANGED == 0 for i in numbers]
        etags = [f"{i + (1 << 60) * new:032x}" for i, new in zip(numbers, changed, strict=True)]
        columns = {"uri": [f"{src}/{path}" for path in paths], "size": [1 << 20] * count, "etag": etags}
        found = {
            "key": [key_of(path) for path in paths],
            "etag": etags,
            "status": ["ok"] * count,
            "error_code": pa.nulls(count, pa.string()),
            "error": pa.nulls(count, pa.string()),
            "codec": ["h264"] * count,
            "width": np.full(count, 340),
            "height": np.full(count, 256),
            "rotation": np.zeros(count, int),
            "fps": np.full(count, 25.0),
            "vfr": [False] * count,
            "frames": np.full(count, 1250),
            "duration_s": np.full(count, 50.0),
            "start_s": np.zeros(count),
            "keyframes_s": keyframes,
            "indexed_at": pa.nulls(count, pa.timestamp("us")),
        }
        verdicts = pa.table(found)
        if name == "listing2":
            verdicts = verdicts.filter(pa.array(changed))
        yield name, pa.table(columns), verdicts


def measure(objects: int) -> list[dict[str, Any]]:
    """The steps for so many objects."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="tubelet-bench-") as name:
        folder = Path(name)
        _make(folder, objects)
        for step, work in _STEPS.items():
            if step.startswith("update"):
                staging = folder / "manifest" / "_staging"
                staging.mkdir(exist_ok=True)
                for file in folder.glob("probed-*"):
                    file.rename(staging / file.name)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(_measured, work, name).result()
            rows.append({"bench": "corpus", "step": step, "objects": objects, **found})
    return rows


if __name__ == "__main__":
    for count in sys.argv[1:]:
        for row in measure(int(count)):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()

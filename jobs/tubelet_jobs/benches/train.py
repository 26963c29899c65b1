"""``tubelet bench train``: a training step fed by the real stream, against the same step on one batch.

Both run the loop of ``tubelet train`` with one rank on the same recipe; only where batches come from
differs: the plan, Ray Data and the sandboxed decoders, or the first batch again and again, half of it before
the stream and half after, as the speed of machines wanders. The model is chosen slow enough for the machine's
decoders; on a CPU all cores but one are the rank's alone, whichever batch it has. The object store is small,
so that decoding goes on during the steps that are timed rather than ahead of them.

``step_s`` is the mean of a step, ``data_stall`` the share of it in which the rank waited for its batch, and
``decode_cores`` how many cores decoding kept busy.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

from tubelet_jobs.bench import BenchOptions
from tubelet_jobs.benches import decode_corpus
from tubelet_jobs.common import connect_ray, say

_VIDEOS = 8
_STEPS, _FULL_STEPS = 120, 600
_WARM_STEPS = 10
_STORE_BYTES = 512 << 20
_FIGURES = ("step_s", "data_stall", "decode_s_per_clip")
_CPU = ("model=ti-32x4-model2", "batch=2", "decode_workers=1")
_GPU = ("model=b-16x2-model2", "batch=32", "precision=bf16")
_RECIPE = (
    "model_options={}", "frames=32", "stride=2", "size=224", "short_side=256", "workers=1",
    "checkpoint_every=1000", "prefetch=2",
)  # fmt: skip


def run(options: BenchOptions) -> list[dict[str, Any]]:
    """Measure; a row for the stream and one for the repeated batch."""
    import torch

    options.peers(())
    gpu = torch.cuda.is_available()
    steps = _FULL_STEPS if options.full else _STEPS
    own = _GPU if gpu else _CPU
    with (
        _own_cores() if not gpu else nullcontext(),
        tempfile.TemporaryDirectory(prefix="tubelet-bench-") as name,
    ):
        connect_ray(None, num_cpus=None if gpu else 4, object_store_memory=None if gpu else _STORE_BYTES)
        folder = Path(name)
        manifest = _corpus(folder)
        recipes = [(*_RECIPE, *own, f"max_steps={_WARM_STEPS + n}") for n in (steps // 2, steps)]
        before = _repeated(folder, manifest, "before", recipes[0])
        stream = _stream(folder, manifest, recipes[1])
        repeated = before + _repeated(folder, manifest, "after", recipes[0])
    recipe = dict(item.split("=") for item in own)
    common = {"bench": "train", **recipe, "device": torch.cuda.get_device_name() if gpu else "cpu"}
    limit_s = fmean(point["step_s"] for point in repeated)
    rows = []
    for peer, points in (("stream", stream), ("repeated batch", repeated)):
        seconds = sum(point["step_s"] for point in points)
        stall_s = sum(point["data_stall"] * point["step_s"] for point in points)
        decode_s = sum(point["decode_s_per_clip"] for point in points) * int(recipe["batch"])
        rows.append(
            {
                **common,
                "peer": peer,
                "steps": len(points),
                "step_s": seconds / len(points),
                "data_stall": stall_s / seconds,
                "decode_cores": decode_s / seconds if points is stream else 0.0,
                "ratio_to_limit": limit_s * len(points) / seconds,
            }
        )
    return rows


@contextmanager
def _own_cores() -> Iterator[None]:
    """All cores but one are the rank's alone: Ray's own processes would take turns with it."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ["TUBELET_RANK_CORES"] = ",".join(str(core) for core in cores[: max(1, len(cores) - 1)])
    os.sched_setaffinity(0, cores[-1:])  # Ray's processes inherit it
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        del os.environ["TUBELET_RANK_CORES"]


def _corpus(folder: Path) -> str:
    """A manifest of ten-second videos at 340x256, of two classes."""
    from tubelet.corpus.index import IndexConfig, index_corpus

    say("bench train: making videos")
    data = decode_corpus.make(decode_corpus.RECIPES[0], folder).read_bytes()
    for i in range(_VIDEOS):
        path = folder / "videos" / "ab"[i % 2] / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    out = str(folder / "manifest")
    index_corpus(IndexConfig(src=str(folder / "videos"), out=out, labels=("folders",), split="train=1"))
    return out


def _prepared(folder: Path, manifest: str, name: str, recipe: tuple[str, ...]) -> Any:
    from tubelet.training.build import initial_model
    from tubelet.training.prepare import prepare
    from tubelet.training.request import Request

    from tubelet_jobs.recipes import load_recipe

    say(f"bench train: {name}")
    uri = f"sqlite:///{folder}/mlflow.db"
    out = str(folder / name)
    prepared = prepare(
        Request(recipe=load_recipe("tiny", recipe), manifest=manifest, out=out, tracking_uri=uri)
    )
    initial_model(prepared)
    return prepared


def _stream(folder: Path, manifest: str, recipe: tuple[str, ...]) -> list[dict[str, float]]:
    """Figures of each step of a real run, once it is under way."""
    from tubelet.tracking import metric_history
    from tubelet.training.fit import fit

    summary = fit(_prepared(folder, manifest, "stream", recipe))
    uri = f"sqlite:///{folder}/mlflow.db"
    columns = {}
    for name in _FIGURES:
        history = metric_history(summary["run_id"], f"train/{name}", uri)
        columns[name] = {step: value for step, value in history.items() if step > _WARM_STEPS}
    return [{name: column[step] for name, column in columns.items()} for step in columns["step_s"]]


def _repeated(folder: Path, manifest: str, name: str, recipe: tuple[str, ...]) -> list[dict[str, float]]:
    """Figures of each step of the same loop, in this process."""
    import ray
    import torch
    from tubelet.training.build import make_job, plan_of, targets_of
    from tubelet.training.events import EventSender, start_event_queue
    from tubelet.training.loop import Rank, RankInfo
    from tubelet.training.resources import plan_resources, use_cores

    prepared = _prepared(folder, manifest, f"repeated batch, {name}", recipe)
    queue = start_event_queue()
    job = make_job(prepared, plan_resources(prepared.request.recipe), queue)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = _same(plan_of(prepared), job)
    others = os.sched_getaffinity(0)
    use_cores(1)
    Rank(job, RankInfo(0, 1, device), batches, targets_of(prepared), EventSender(queue)).run()
    os.sched_setaffinity(0, others)
    records = ray.get(queue.drain.remote())
    return [r["figures"] for r in records if r["kind"] == "step" and r["step"] > _WARM_STEPS]


def _same(plan: Any, job: Any) -> Iterator[dict[str, Any]]:
    """The clips of the first micro-batch, under the names of each that is due."""
    from tubelet.training.stream import TrainDecoder

    decoder = TrainDecoder(job.feed.stream)
    first: dict[str, Any] = {}
    for table in plan.blocks(0, job.feed.total_steps, job.feed.shape(1)):
        batch = {name: table[name].to_numpy() for name in table.column_names}
        first = first or decoder(batch)
        yield {**first, **batch}

"""``tubelet bench pipeline``: training clips a second out of the real stream, and the cores a GPU needs.

``stream`` is what ranks read: plan, Ray Data, sandboxed decoders, ordered blocks of one micro-batch. The
limit is the same decoding in one bare process a core, no sandbox and no Ray, clips thrown away. They take
turns, so that what disturbs the machine disturbs both. Where there is a GPU, training steps of the paper's
models are timed on a batch that lies there already: so many clips a second have to come, from so many cores.
With ``--plan`` one round of each is enough, and what follows is arithmetic (see :mod:`.sizing`).
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tubelet.clips import ClipSpec, TrainCrop, generator
from tubelet.config import usable_cores
from tubelet.training.plan import BatchShape, Plan

from tubelet_jobs.bench import BenchOptions
from tubelet_jobs.benches import decode_corpus
from tubelet_jobs.benches.label import BASE, SMALL, model_rate
from tubelet_jobs.benches.sizing import Prices, Rates, size
from tubelet_jobs.common import connect_ray, say

_RECIPES = (decode_corpus.RECIPES[0], decode_corpus.RECIPES[2])
_ROUNDS, _FULL_ROUNDS = 3, 9
_BATCH, _STEPS = 8, 16
_WARM_STEPS = 4
# Trained on GPUs by the paper at 32x2@224, with the batch that is timed.
_MODELS = (("b-16x2-model1", 16), ("b-16x2-model2", 32), ("l-16x2-model2", 16))
SPEC = ClipSpec()


def run(options: BenchOptions) -> list[dict[str, Any]]:
    """Measure; a row for the stream and one for the limit a video, and one a model where there is a GPU."""
    options.peers(())
    prices = Prices.of(options.prices)  # read before anything is measured
    rounds = _FULL_ROUNDS if options.full else _ROUNDS if options.plan is None else 1
    rows: list[dict[str, Any]] = []
    connect_ray(None, num_cpus=max(4, usable_cores()))
    with tempfile.TemporaryDirectory(prefix="tubelet-bench-") as folder:
        for recipe in _RECIPES:
            path = decode_corpus.make(recipe, Path(folder))
            rows += _measure(recipe.name, path, rounds)
    core_rates = {row["video"]: row["clips_per_s_per_core"] for row in rows if row["peer"] == "stream"}
    if options.plan is not None and options.hours is not None:
        return rows + _planned(core_rates, options.plan, options.hours, prices)
    return rows + _models(core_rates)


def _planned(core_rates: dict[str, float], videos: int, hours: float, prices: Prices) -> list[dict[str, Any]]:
    """A row for each kind of video; the arithmetic is said on the way."""
    import torch

    gpu = torch.cuda.is_available()
    model = BASE if gpu else SMALL
    rate = model_rate(model)
    rows = []
    for video, decode_rate in core_rates.items():
        rates = Rates(
            video,
            model.name,
            decode_rate,
            model_per_gpu=rate if gpu else None,
            model_per_core=None if gpu else rate / usable_cores(),
        )
        found = size(videos, hours, rates, prices)
        say("\n".join(found.lines))
        rows.append(found.row(rates, videos, hours))
    return rows


def _measure(name: str, path: Path, rounds: int) -> list[dict[str, Any]]:
    ours, limits = [], []
    for i in range(rounds):
        say(f"bench pipeline: {name}, round {i + 1} of {rounds}")
        limits.append(_bare_rate(path))
        ours.append(_stream_rate(path))
    # The median of the ratios: a round's two halves saw the same machine.
    ratio = float(np.median(np.divide(ours, limits)))
    common = {"bench": "pipeline", "video": name, "sampling": SPEC.sampling, "cores": usable_cores()}
    rows = [("stream", max(ours), ratio), ("limit", max(limits), 1.0)]
    return [
        {
            **common,
            "peer": peer,
            "clips_per_s": rate,
            "clips_per_s_per_core": rate / usable_cores(),
            "ratio_to_limit": r,
        }
        for peer, rate, r in rows
    ]


def _plan(path: Path) -> Plan:
    """Enough references to one file, each with a key, and so a clip and crop, of its own."""
    count = _BATCH * (_STEPS + _WARM_STEPS)
    nothing = pa.array([None] * count, pa.float64())
    columns = {
        "key": pa.array([f"video {i}" for i in range(count)]),
        "uri": pa.array([str(path)] * count),
        "etag": pa.array([None] * count, pa.string()),
        "size": pa.array([path.stat().st_size] * count),
        "clip_start_s": nothing,
        "clip_end_s": nothing,
    }
    return Plan(pa.table(columns), _BATCH, seed=0)


def _stream_rate(path: Path) -> float:
    """Clips a second of the stream once its workers are up, read as a rank reads."""
    import ray
    from tubelet.training.stream import StreamConfig, stream_options, training_stream

    config = StreamConfig(SPEC, TrainCrop(), (1, 1), seed=0, decode_workers=usable_cores(), decode_cpus=0.5)
    steps = _WARM_STEPS + _STEPS
    stream = training_stream(ray.put(_plan(path)), BatchShape(_BATCH, 1), (0, steps), config)
    stream.context.execution_options = stream_options()
    started_s, first = 0.0, 0
    for step, batch in enumerate(stream.iter_batches(batch_size=None, batch_format="numpy"), 1):
        assert not any(batch["error_code"]), batch["error"]
        if step == _WARM_STEPS:
            started_s, first = time.monotonic(), step
    return (steps - first) * _BATCH / (time.monotonic() - started_s)


def _bare_rate(path: Path) -> float:
    """Clips a second of one bare process a core."""
    count = _BATCH * _STEPS
    with multiprocessing.get_context("spawn").Pool(usable_cores()) as pool:
        warm_up = [(str(path), i) for i in range(usable_cores())]
        pool.map(_decode, warm_up, chunksize=1)  # imports are not counted
        started_s = time.monotonic()
        pool.map(_decode, [(str(path), i) for i in range(count)], chunksize=4)
        return count / (time.monotonic() - started_s)


def _decode(job: tuple[str, int]) -> int:
    from tubelet.clips import clip_to_tubelets
    from tubelet.video import decode_views

    path, number = job
    view = TrainCrop().view(SPEC, generator(0, 0, f"video {number}", 0))
    clips = decode_views(path, [view]).clips
    return sum(clip_to_tubelets(clip.frames, SPEC.tubelet).nbytes for clip in clips)


def _models(core_rates: dict[str, float]) -> list[dict[str, Any]]:
    """Training steps on this machine's GPU, and how many cores keep it fed with each video."""
    import torch

    if not torch.cuda.is_available():
        cores = ", ".join(f"{100 / rate:.0f} for {video}" for video, rate in core_rates.items())
        say(f"no GPU here: one that trains 100 clips/s needs cores like these: {cores}")
        return []
    rows = []
    for model, batch in _MODELS:
        rate = _step_rate(model, batch)
        rows += [
            {
                "bench": "pipeline",
                "peer": "gpu",
                "video": video,
                "model": model,
                "device": torch.cuda.get_device_name(),
                "batch": batch,
                "clips_per_s": rate,
                "decode_cores_per_gpu": rate / core_rate,
            }
            for video, core_rate in core_rates.items()
        ]
    return rows


def _step_rate(name: str, batch: int, steps: int = 10) -> float:
    """Clips a second of forward, backward and update in bf16 on a batch that lies on the GPU."""
    import torch
    from tubelet.vivit import ViViT, ViViTConfig

    device = torch.device("cuda")
    model = ViViT(ViViTConfig.preset(name, classes=400)).to(device).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    shape = (batch, SPEC.tokens, SPEC.token_bytes)
    tubelets = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    started_s = 0.0
    for step in range(steps + 3):
        if step == 3:
            torch.cuda.synchronize()
            started_s = time.monotonic()
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tubelets)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return batch * steps / (time.monotonic() - started_s)

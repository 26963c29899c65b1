"""``tubelet bench label``: videos a second of the whole job, against the obvious way and against the limit.

All see the same files with models of equal size. ``tubelet`` is the real job: manifest, Ray Data, rows
published as Parquet, a run in MLflow. ``read_videos`` is the same job as one would write it first: Ray
Data's own reader, and ``map_batches`` with the Vivit of Hugging Face. The limit is what the machine could
do at most: bare decode in one process a core, or the model alone on all cores, whichever is lower;
``limit-shared`` is what both could do at most where the cores have to be divided between them. Starting
the workers is left out: the rate of ``tubelet`` is taken from its first result on, that of ``read_videos``
from the difference between two runs over different numbers of videos.

Limit and job take turns in rounds, for a machine that others use changes by the minute; rates per
processor-second (user and system time of all processes that worked on it) change less.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tubelet.config import usable_cores
from tubelet.video.process import CHILD_ENV

from tubelet_jobs.bench import BenchOptions, missing_peer
from tubelet_jobs.benches import decode_corpus
from tubelet_jobs.benches.cpu_time import CpuMeter
from tubelet_jobs.common import connect_ray, say

PEERS = ("read_videos",)
_ROUNDS, _FULL_ROUNDS = 3, 9
_VIDEOS, _FULL_VIDEOS = 1200, 5400  # of all rounds together
# The obvious way reads a few dozen videos while its model starts, so the shorter of its two runs is longer.
_OBVIOUS_VIDEOS = (64, 128)
_LIMIT_VIDEOS = 240
_DRIVER_OBJECTS, _FULL_DRIVER_OBJECTS = (200_000,), (10_000, 200_000, 1_000_000)
_DISTINCT = 4
_CLASSES = 10


@dataclass(frozen=True)
class Size:
    """A model's size, for ours and for Hugging Face's alike."""

    frames: int
    side: int
    tubelet: tuple[int, int, int]
    dim: int
    layers: int
    heads: int

    @property
    def name(self) -> str:
        """For the table."""
        t, h, _ = self.tubelet
        return f"model1-{self.dim}x{self.layers}-{h}x{t}-{self.frames}x{self.side}"


# On CPUs so small that the decode is what bounds the job; on GPUs the paper's base model.
SMALL = Size(16, 112, (4, 16, 16), 64, 2, 4)
BASE = Size(32, 224, (2, 16, 16), 768, 12, 12)


def run(options: BenchOptions) -> list[dict[str, Any]]:
    """Measure; a row for the limit, one for the job, one for the peer.

    Raises:
        UserError: the peer's packages are missing.
    """
    import torch

    if options.driver:
        from tubelet_jobs.benches.label_driver import measure

        return [measure(objects) for objects in (_FULL_DRIVER_OBJECTS if options.full else _DRIVER_OBJECTS)]
    peers = options.peers(PEERS)
    if peers:
        _check_peer()
    size = BASE if torch.cuda.is_available() else SMALL
    rounds, count = (_FULL_ROUNDS, _FULL_VIDEOS) if options.full else (_ROUNDS, _VIDEOS)
    with tempfile.TemporaryDirectory(prefix="tubelet-bench-") as name:
        folder = Path(name)
        connect_ray(None)
        model = _bundle(folder / "model", size)
        found = []
        for number in range(rounds):
            say(f"bench label: round {number + 1} of {rounds}")
            place = folder / f"round{number}"
            paths = _corpus(place / "videos", count // rounds)
            # In turns, the order changing, so that what disturbs the machine disturbs all of them.
            limits = {} if number % 2 else _limits(paths, size)
            ours = _ours(place, model)
            found.append(Round(ours, **(limits or _limits(paths, size))))
        obvious = _obvious_rate(paths, size) if peers else None
    return _rows(size, count, found, obvious)


@dataclass(frozen=True)
class Rate:
    """Videos per second, and per processor-second of all that worked on them."""

    per_s: float
    per_cpu_s: float


@dataclass(frozen=True)
class Round:
    """What one round measured."""

    ours: Ours
    decode: Rate
    model: Rate

    @property
    def shared(self) -> Rate:
        """Both limits where they share the cores."""
        one, two = self.decode, self.model
        return Rate(1 / (1 / one.per_s + 1 / two.per_s), 1 / (1 / one.per_cpu_s + 1 / two.per_cpu_s))

    @property
    def ratio(self) -> float:
        """The job's rate to that of the lower limit."""
        return self.ours.rate.per_s / min(self.decode.per_s, self.model.per_s)

    @property
    def cpu_ratio(self) -> float:
        """The same per processor-second, of which decoding and model both take theirs."""
        return self.ours.rate.per_cpu_s / self.shared.per_cpu_s


@dataclass(frozen=True)
class Ours:
    """One run of the job; ``rate`` from its first result on."""

    rate: Rate
    with_start_per_s: float
    startup_s: float


def _limits(paths: list[Path], size: Size) -> dict[str, Rate]:
    return {"decode": _limit_decode(paths, size), "model": _limit_model(size)}


def _rows(size: Size, count: int, rounds: list[Round], obvious: float | None) -> list[dict[str, Any]]:
    """Medians over the rounds; ratios are medians of the rounds' own."""

    def median(value: Callable[[Round], float]) -> float:
        return float(np.median([value(one) for one in rounds]))

    common = {"bench": "label", "model": size.name, "videos": count, "rounds": len(rounds)}
    rates: dict[str, Callable[[Round], Rate]] = {
        "limit-decode": lambda one: one.decode,
        "limit-model": lambda one: one.model,
        "limit-shared": lambda one: one.shared,
        "tubelet": lambda one: one.ours.rate,
    }

    def row(peer: str, rate: Callable[[Round], Rate]) -> dict[str, Any]:
        found = {"per_s": median(lambda one: rate(one).per_s), "cpu": median(lambda one: rate(one).per_cpu_s)}
        return {**common, "peer": peer, "videos_per_s": found["per_s"], "videos_per_cpu_s": found["cpu"]}

    rows = [row(peer, rate) for peer, rate in rates.items()]
    rows[-1] |= {
        "with_start_videos_per_s": median(lambda one: one.ours.with_start_per_s),
        "startup_s": median(lambda one: one.ours.startup_s),
        "ratio_to_limit": median(lambda one: one.ratio),
        "cpu_ratio_to_limit": median(lambda one: one.cpu_ratio),
    }
    if obvious is not None:
        rows[-1]["ratio_to_best_peer"] = rows[-1]["videos_per_s"] / obvious
        rows.append({**common, "peer": "read_videos", "videos": _OBVIOUS_VIDEOS[1], "videos_per_s": obvious})
    return rows


def _corpus(folder: Path, count: int) -> list[Path]:
    """``count`` files (links to a few originals) of ten seconds at 340x256."""
    folder.mkdir(parents=True)
    recipe = decode_corpus.RECIPES[0]
    say(f"bench label: making {_DISTINCT} videos, linked to be {count}")
    made = decode_corpus.make(recipe, folder)
    originals = [made]
    for i in range(1, _DISTINCT):
        originals.append(folder / f"original{i}.mp4")
        originals[-1].write_bytes(made.read_bytes())
    paths = [folder / f"v{i:06d}.mp4" for i in range(count)]
    for i, path in enumerate(paths):
        os.link(originals[i % _DISTINCT], path)
    for original in originals:
        original.unlink()
    return paths


def _limit_decode(paths: list[Path], size: Size) -> Rate:
    """Of one bare decode process a core: no sandbox, no Ray, clips thrown away; memory is kept alike."""
    say("bench label: bare decode")
    context = multiprocessing.get_context("spawn")
    share = [str(path) for path in paths[:_LIMIT_VIDEOS]]
    with _environment(CHILD_ENV), context.Pool(usable_cores()) as pool:
        pool.map(_decode_all, [(share[:1], size)] * usable_cores(), chunksize=1)  # imports are not counted
        with CpuMeter() as used:
            started_s = time.monotonic()
            pool.map(_decode_all, [([path], size) for path in share], chunksize=4)
            seconds = time.monotonic() - started_s
    return Rate(len(share) / seconds, len(share) / used.seconds())


@contextmanager
def _environment(names: Mapping[str, str]) -> Iterator[None]:
    """``names`` for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(names)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _limit_model(size: Size) -> Rate:
    """Of the model alone. A GPU's work takes no processor time worth the name: it counts as it is."""
    with CpuMeter() as used:
        began_s = time.monotonic()
        per_s = model_rate(size)
        seconds = time.monotonic() - began_s
    return Rate(per_s, per_s * seconds / used.seconds())


def _decode_all(job: tuple[list[str], Size]) -> int:
    from tubelet.clips import ClipSpec
    from tubelet.video import decode_views

    paths, size = job
    views = ClipSpec(frames=size.frames, stride=None, size=size.side, tubelet=size.tubelet).test_views()
    return sum(len(decode_views(path, views).clips) for path in paths)


def _bundle(folder: Path, size: Size) -> str:
    import torch
    from tubelet.clips import ClipSpec
    from tubelet.inference.bundle import ModelBundle
    from tubelet.vivit import ViViT

    torch.manual_seed(0)
    spec = ClipSpec(frames=size.frames, stride=None, size=size.side, tubelet=size.tubelet)
    labels = {"label": [f"class {i}" for i in range(_CLASSES)]}
    ModelBundle(ViViT(_config(size)).eval(), labels, spec).save(folder)
    return str(folder)


def _config(size: Size) -> Any:
    from tubelet.vivit import ViViTConfig

    return ViViTConfig(
        frames=size.frames,
        height=size.side,
        width=size.side,
        tubelet=size.tubelet,
        dim=size.dim,
        layers=size.layers,
        heads=size.heads,
        mlp=4 * size.dim,
        classes=_CLASSES,
    )


def model_rate(size: Size, seconds: float = 4.0) -> float:
    """Clips a second of the model alone, on all cores or on the GPU, from uint8 tubelets in memory."""
    import torch
    from tubelet.vivit import ViViT, fold_normalisation

    say("bench label: the model alone")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = fold_normalisation(ViViT(_config(size)).eval()).to(device, kind)
    batch = 32 if device.type == "cuda" else 8
    clips = torch.randint(0, 256, (batch, model.config.tokens, model.config.token_values), dtype=torch.uint8)
    return _rate(lambda: _forward(model, clips.to(device)), batch, seconds)


def _forward(model: Any, clips: Any) -> None:
    import torch

    with torch.inference_mode():
        model(clips).sum().item()


def _rate(action: Callable[[], None], each: int, seconds: float) -> float:
    action()
    done, started_s = 0, time.monotonic()
    while time.monotonic() - started_s < seconds:
        action()
        done += each
    return done / (time.monotonic() - started_s)


def _ours(folder: Path, model: str) -> Ours:
    from tubelet.corpus.index import IndexConfig, index_corpus
    from tubelet.labelling.config import LabelConfig
    from tubelet.labelling.job import LabelJob

    say("bench label: tubelet")
    index_corpus(IndexConfig(src=str(folder / "videos"), out=str(folder / "manifest")))
    config = LabelConfig(
        source=str(folder / "manifest"),
        models=(model,),
        out=str(folder / "out"),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    with CpuMeter() as used:
        started_s = time.monotonic()
        summary = LabelJob(config).run(lambda: None)
        ended_s = time.monotonic()
    running_s = summary.seconds - summary.startup_s
    rate = Rate(summary.labelled / running_s, summary.labelled / used.seconds(ended_s - running_s))
    whole_s = ended_s - started_s
    return Ours(rate, summary.labelled / whole_s, whole_s - running_s)


def _check_peer() -> None:
    try:
        import decord  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_peer("read_videos", error) from error


def _obvious_rate(paths: list[Path], size: Size) -> float:
    """Videos a second, from the difference of two runs."""
    few, many = _OBVIOUS_VIDEOS
    return (many - few) / (_obvious_s(paths[:many], size) - _obvious_s(paths[:few], size))


def _obvious_s(paths: list[Path], size: Size) -> float:
    """Seconds of the whole job on ``paths``."""
    import ray
    import torch
    from ray.data import ActorPoolStrategy

    say(f"bench label: read_videos + map_batches on {len(paths)} videos")
    started_s = time.monotonic()
    gpu = torch.cuda.is_available()
    # One block a video, which is the best that can be asked of a reader that makes a row of every frame; Ray
    # Data would cut larger blocks, and the model would see pieces.
    ray.data.DataContext.get_current().target_max_block_size = 1 << 30
    frames = ray.data.read_videos([str(path) for path in paths], override_num_blocks=len(paths))
    results = frames.map_batches(
        _Obvious,
        fn_constructor_args=(size,),
        # Ray Data takes no whole blocks for a GPU: so many rows are a video here, too.
        batch_size=decode_corpus.RECIPES[0].frames,
        compute=ActorPoolStrategy(size=1),
        num_cpus=0.5,
        num_gpus=1 if gpu else None,
    )
    done = sum(len(batch["label"]) for batch in results.iter_batches(batch_size=None))
    assert done == len(paths), f"{done} rows for {len(paths)} videos"
    return time.monotonic() - started_s


class _Obvious:
    """Frames of one video to a label, by the image processor and the model of Hugging Face."""

    def __init__(self, size: Size) -> None:
        import torch
        from transformers import VivitConfig, VivitForVideoClassification, VivitImageProcessor

        self._frames = size.frames
        side = {"height": size.side, "width": size.side}
        self._processor = VivitImageProcessor(size={"shortest_edge": size.side * 8 // 7}, crop_size=side)
        config = VivitConfig(
            image_size=size.side,
            num_frames=size.frames,
            tubelet_size=list(size.tubelet),
            hidden_size=size.dim,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.dim,
            num_labels=_CLASSES,
        )
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = VivitForVideoClassification(config).eval().to(self._device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        picked = np.linspace(0, len(batch["frame"]) - 1, self._frames).round().astype(int)
        inputs = self._processor([batch["frame"][i] for i in picked], return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(inputs["pixel_values"].to(self._device)).logits
        return {"label": logits.argmax(-1).cpu().numpy()}

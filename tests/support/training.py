"""Small real videos and their manifest, for the tests of clips and training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load
from tubelet import storage
from tubelet.clips import Batch
from tubelet.corpus.manifest import key_of, schema_with, write_manifest
from tubelet.storage.lock import Claim
from tubelet.training.build import initial_model, plan_of, stream_config, targets_of, validation_of
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.feed import FeedConfig
from tubelet.training.loop import Rank, RankInfo, TrainJob
from tubelet.training.plan import Plan
from tubelet.training.prepare import INITIAL, Prepared, prepare
from tubelet.training.request import Request
from tubelet.training.resources import Resources
from tubelet.training.stream import TrainDecoder
from tubelet_jobs.recipes import load_recipe


def write_video(path: Path, frames: np.ndarray, codec: str = "libx264", fps: int = 10) -> None:
    """uint8 ``(T, H, W, 3)`` to a video file of the kind the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def moving_square(direction: int, start: int, frames: int = 16, side: int = 48) -> np.ndarray:
    """A bright square that moves left (-1) or right (1), wrapping around: no single frame tells which."""
    clip = np.full((frames, side, side, 3), 40, np.uint8)
    for t in range(frames):
        columns = (np.arange(12) + start + 3 * direction * t) % side
        clip[t, 16:32, columns] = 220
    return clip


def write_corpus(
    folder: Path,
    splits: Mapping[str, int],
    *,
    broken: Sequence[int] = (),
    codec: str = "libx264",
    shaded: bool = False,
) -> str:
    """``splits``: videos of each split, half of them 'left', half 'right'; returns the manifest's path.

    ``broken``: which of the training videos are bytes that no decoder can read although the manifest says ok.
    ``shaded``: the picture is darker where the square goes left, so that a single frame tells the class.
    """
    rows: list[dict[str, Any]] = []
    for split, count in splits.items():
        for i in range(count):
            label, direction = [("left", -1), ("right", 1)][i % 2]
            path = folder / "videos" / split / f"{label} {i:02d}.mp4"
            frames = moving_square(direction, 5 * i)
            write_video(path, frames // 2 if shaded and direction < 0 else frames, codec)
            if split == "train" and i in broken:
                path.write_bytes(b"\x00" * 512)
            rows.append(_row(path, folder / "videos", label, split))
    schema = schema_with()
    table = pa.Table.from_pylist([{**dict.fromkeys(schema.names), **row} for row in rows], schema)
    manifest = folder / "manifest"
    write_manifest(table, str(manifest))
    return str(manifest)


def _row(path: Path, root: Path, label: str, split: str) -> dict[str, Any]:
    relative = path.relative_to(root).as_posix()
    info = storage.stat(path)
    assert info is not None
    return {
        "key": key_of(relative),
        "segment": 0,
        "uri": str(path),
        "path": relative,
        "etag": info.etag,
        "size": info.size_bytes,
        "status": "ok",
        "label": label,
        "split": split,
        "frames": 16,
    }


# ---- the training loop on real ranks (gloo), fed by the real plan and decoder, without Ray in between


@dataclass(frozen=True)
class Run:
    """One call of the loop: up to where, and before which step it is cut off (None: it ends by itself)."""

    out: str
    killed_before: int | None = None
    overrides: tuple[str, ...] = ()
    before_step: Callable[[int], None] | None = None  # called before the clips of a step are decoded
    claim: Claim | None = None


class RecordedEvents:
    """In place of an event queue: keeps what a rank sends."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.stop_reason, self.save = "", False

    def send(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def flush(self) -> None:
        pass


class KilledError(Exception):
    """Stands for the end of the process: whatever the loop had not saved is lost."""


RECIPE = (
    "frames=8",
    "stride=null",
    "size=32",
    "short_side=40",
    "batch=8",
    "max_steps=6",
    "checkpoint_every=2",
    "warmup_steps=2",
)


def run_on_ranks(world: int, manifest: str, runs: Sequence[Run]) -> None:
    """Do ``runs`` one after the other on ``world`` processes; each makes its job, model and stream anew."""
    with tempfile.TemporaryDirectory() as folder:
        args = (world, f"{folder}/rendezvous", manifest, tuple(runs))
        torch.multiprocessing.spawn(_rank_process, args, nprocs=world)


def _rank_process(rank: int, world: int, rendezvous: str, manifest: str, runs: tuple[Run, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    for run in runs:
        with suppress(KilledError):
            run_rank(rank, world, manifest, run)
        dist.barrier()
    dist.destroy_process_group()


def run_rank(rank: int, world: int, manifest: str, run: Run) -> RecordedEvents:
    """One rank's part of one run, in this process."""
    recipe = load_recipe("tiny", [*RECIPE, f"workers={world}", *run.overrides])
    prepared = prepare(Request(recipe=recipe, manifest=manifest, out=run.out, resume=True))
    if rank == 0:
        initial_model(prepared)
    if world > 1:
        dist.barrier()
    store = CheckpointStore(run.out, retain=recipe.retain, claim=run.claim)
    plan = plan_of(prepared)
    job = job_of(prepared, plan, store)
    events = RecordedEvents()
    decoder = TrainDecoder(job.feed.stream)
    batches = _decoded(rank, world, job, plan, decoder, run)
    Rank(job, RankInfo(rank, world, torch.device("cpu")), batches, targets_of(prepared), events).run()
    return events


def job_of(prepared: Prepared, plan: Plan, store: CheckpointStore) -> TrainJob:
    """As the driver makes it, but for what lies in Ray's object store."""
    stream = stream_config(prepared, decode_workers=1)
    recipe = prepared.request.recipe
    resources = Resources(False, 0.125, stream.decode_workers)
    feed = FeedConfig(plan, stream, recipe.batch, recipe.accumulate, prepared.total_steps, store, resources)
    return TrainJob(
        recipe=recipe,
        spec=prepared.spec,
        labels=prepared.examples.labels,
        targets=None,
        train_rows=len(prepared.examples),
        validation=validation_of(prepared),
        feed=feed,
        initial=f"{prepared.request.out}/{INITIAL}",
        events=None,
        metadata={},
    )


def _decoded(
    rank: int, world: int, job: TrainJob, plan: Plan, decoder: TrainDecoder, run: Run
) -> Iterator[Batch]:
    first, last = job.feed.checkpoints.newest() or 0, job.feed.total_steps
    for number, table in enumerate(plan.blocks(first, last, job.feed.shape(world))):
        if table["view"][0].as_py() < 0:
            step = table["step"][0].as_py()
            if step == run.killed_before:
                raise KilledError
            if run.before_step:
                run.before_step(step)
        if number % world == rank:  # as equal blocks in order are dealt out
            yield decoder({name: table[name].to_numpy() for name in table.column_names})


def weights_of(out: str, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights, optimiser, averages."""
    folder = f"{out}/checkpoints/step-{step:08d}"
    assert "COMPLETE" in storage.list_names(folder)
    model, state = (storage.read_bytes(f"{folder}/{name}.safetensors") for name in ("model", "state"))
    return load(model) | load(state)

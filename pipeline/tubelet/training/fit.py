"""A training run as the driver sees it: start the ranks, watch them, feed the tracker, publish the model."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
import ray.train

from tubelet import storage
from tubelet.cluster import nodes_held
from tubelet.config import UserError
from tubelet.progress import ProgressLine
from tubelet.storage.errors import DiskFullError
from tubelet.storage.lock import LockLostError, OutputLock
from tubelet.tracking import Tracker, run_name
from tubelet.training.build import make_job
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.elastic import LOOK_EVERY_S, ElasticTrainer
from tubelet.training.events import Record, start_event_queue
from tubelet.training.failures import diverged, root_cause, too_many_errors
from tubelet.training.feed import NAME, Feed
from tubelet.training.health import Outcome
from tubelet.training.job import TrainJob
from tubelet.training.local_ray import LocalRay, LocalRayError
from tubelet.training.loop import train_worker
from tubelet.training.prepare import Prepared, write_record
from tubelet.training.progress import Progress, summary_of, take
from tubelet.training.publish import publish
from tubelet.training.resources import Resources, plan_resources

_log = logging.getLogger(__name__)

POLL_S = 0.25
_LOOK_S = 2.0  # between looks whether a local Ray still runs
# Ray Train looks after its ranks this often; at its default of 2 s a short run mostly waits for its end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


class StoppedError(Exception):
    """The run was asked to stop, and did; ``step`` is that of its newest checkpoint."""

    def __init__(self, reason: str, step: int, why: str = "") -> None:
        super().__init__(f"stopped by {reason} at step {step}{why}; go on with --resume")
        self.reason, self.step = reason, step


def fit(
    prepared: Prepared,
    init_report: str = "",
    lock: OutputLock | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Run a prepared training to its end on the Ray that is connected; returns the summary.

    Args:
        prepared: what to train.
        init_report: what :func:`tubelet.training.build.initial_model` said.
        lock: what the job holds its output by.
        tracker: of a run that has begun and is on record; it is finished here.

    Raises:
        StoppedError: SIGTERM or SIGINT came; a checkpoint was saved, if Ray still ran.
        LockLostError: another job has taken the output over; nothing was written since.
        UserError: too many videos failed to decode, or the cluster is too small.
    """
    started_s = time.monotonic()
    resources = plan_resources(prepared.request.recipe)
    begun, tracker = tracker is not None, tracker or start_tracker(prepared)
    try:
        if not begun:
            write_record(prepared, tracker.run_id)
        if init_report:
            tracker.log_text(init_report, "init.txt")
        progress = _train(prepared, resources, tracker, lock)
        _raise_outcome(prepared, progress)
        if lock is not None:
            lock.check()
        summary = publish(prepared, tracker)
    except (StoppedError, KeyboardInterrupt):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    summary |= summary_of(progress, prepared.request.recipe.batch, time.monotonic() - started_s)
    tracker.finish("FINISHED")
    return summary


# ---- before


def start_tracker(prepared: Prepared) -> Tracker:
    """The MLflow run of this training: a new one, or that of the run that it goes on with."""
    request, record = prepared.request, prepared.record or {}
    # Refused here if at all, and not after the last step.
    name = request.model_name
    variant = prepared.config.variant
    tags = {
        "tubelet.recipe": request.recipe_name or None,
        "tubelet.model_name": name,
        "tubelet.job": "train",
        "tubelet.manifest": prepared.manifest,
        "tubelet.data_fingerprint": prepared.examples.fingerprint,
        "tubelet.out": storage.normalise_uri(request.out),
    }
    tracker = Tracker.start(
        request.tracking_uri,
        request.experiment,
        run_name(request.name, request.recipe_name or "train", variant),
        run_id=record.get("run_id"),
        tags=tags,
        params=_params(prepared),
        description=f"`tubelet train`\n\n{prepared.plan_text()}",
    )
    if not record:
        tracker.log_text(request.recipe.to_yaml(), "recipe.yaml")
        splits = {"train": prepared.examples, "validation": prepared.validation}
        for context, examples in splits.items():
            if examples is not None:
                tracker.log_dataset(prepared.manifest, examples.fingerprint, context, len(examples))
    return tracker


def _params(prepared: Prepared) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in prepared.request.recipe.model_dump(mode="json").items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat | {"total_steps": prepared.total_steps, "train_videos": len(prepared.examples)}


def _trainer(job: TrainJob, resources: Resources, scratch: str) -> ElasticTrainer:
    least, most = job.recipe.world
    return ElasticTrainer(
        train_worker,
        queue=job.events,
        rank_per_node=resources.rank_per_node,
        train_loop_config={"job": job},
        datasets={NAME: _no_dataset},
        dataset_config=Feed(job.feed),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            elastic_resize_monitor_interval_s=LOOK_EVERY_S,
            use_gpu=resources.use_gpu,
            resources_per_worker=resources.per_rank,
            # Ranks without GPUs share the cores of their node: on nodes of their own, each has more.
            placement_strategy="PACK" if resources.use_gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=job.recipe.max_failures),
        ),
    )


def _no_dataset() -> None:
    """In place of a dataset: :class:`Feed` makes the stream once the number of ranks is known."""


# ---- meanwhile


def _train(prepared: Prepared, resources: Resources, tracker: Tracker, lock: OutputLock | None) -> Progress:
    request = prepared.request
    progress = Progress()
    store = CheckpointStore.of(request)
    if store.newest() == prepared.total_steps:
        progress.step, progress.outcome = prepared.total_steps, Outcome.DONE  # only publishing was left to do
        return progress
    if len(ray.nodes()) == 1:
        # Nobody takes away the only node with notice; the watcher would cost a process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    queue, local = start_event_queue(), LocalRay()
    with tempfile.TemporaryDirectory(prefix="tubelet-train-") as scratch, _signals(queue) as reasons:
        job = make_job(prepared, resources, queue, lock.claim() if lock else None)
        trainer = _trainer(job, resources, scratch)
        errors: list[BaseException] = []
        told = False

        def drain(line: ProgressLine) -> None:
            try:
                take(_records(queue, local), progress, tracker, line)
            except (LocalRayError, ray.exceptions.RayError) as error:
                raise _without_ray(error, local, reasons, store.newest() or 0) from error

        # In a thread: the main one handles signals and feeds the tracker.
        args = (trainer, resources.nodes, errors)
        thread = threading.Thread(target=_fit_in_thread, args=args, name="fit", daemon=True)
        thread.start()
        with ProgressLine("train", prepared.total_steps, "steps") as line:
            while thread.is_alive():
                thread.join(POLL_S)
                drain(line)
                if lock and lock.lost and not told:
                    told = True  # they end without a checkpoint
                    queue.request_stop.remote(str(Outcome.TAKEN_OVER))
            drain(line)
    _log_failures(progress, tracker)
    if lock and lock.lost:
        raise LockLostError(lock.lost)
    if errors:
        cause = root_cause(errors[0])
        ray_failed = isinstance(cause, ray.exceptions.RayError)
        raise _without_ray(cause, local, reasons, store.newest() or 0) if ray_failed else cause
    if progress.outcome == Outcome.STOPPED:
        raise StoppedError(reasons[0] if reasons else "request", progress.step)
    return progress


def _log_failures(progress: Progress, tracker: Tracker) -> None:
    """Keep which videos could not be trained on, with the reasons, beside the run."""
    if progress.failures:
        lines = [f"{uri}\t{code}\t{error}" for uri, (code, error) in sorted(progress.failures.items())]
        tracker.log_text("uri\terror_code\terror\n" + "\n".join(lines) + "\n", "failed_videos.tsv")


def _fit_in_thread(trainer: ElasticTrainer, nodes: int, errors: list[BaseException]) -> None:
    try:
        with nodes_held(nodes):
            trainer.fit()
    except BaseException as error:
        errors.append(error)


@contextmanager
def _signals(queue: Any) -> Iterator[list[str]]:
    """SIGTERM or SIGINT asks the ranks to save and stop; a second one ends the driver at once."""
    reasons: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if reasons:
            raise KeyboardInterrupt
        reasons.append(signal.Signals(number).name)
        queue.request_stop.remote(reasons[-1])

    if threading.current_thread() is not threading.main_thread():
        yield reasons
        return
    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield reasons
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _records(queue: Any, local: LocalRay) -> list[Record]:
    """What the ranks have told since the last call.

    Raises:
        LocalRayError: nobody will answer any more.
    """
    waiting = queue.drain.remote()
    while True:
        local.check()
        try:
            records: list[Record] = ray.get(waiting, timeout=_LOOK_S)
        except ray.exceptions.GetTimeoutError:
            continue
        return records


def _without_ray(error: BaseException, local: LocalRay, reasons: list[str], saved: int) -> BaseException:
    """What to say where Ray failed, or ended before the ranks could save.

    A local Ray hears a signal to the group of processes, too; what happens to a cluster has other reasons.
    """
    if reasons:
        lines = str(error).strip().splitlines() or [""]
        why = "Ray was stopped, too" if local.is_ours else f"Ray failed, too: {lines[0]}"
        return StoppedError(reasons[0], saved, f" ({why}; what was done since is lost)")
    if isinstance(error, LocalRayError):
        return UserError(f"{error}: go on from step {saved} with --resume")
    return error


# ---- after


def _raise_outcome(prepared: Prepared, progress: Progress) -> None:
    request = prepared.request
    recipe = request.recipe
    store = CheckpointStore.of(request)
    if progress.outcome == Outcome.TAKEN_OVER:
        raise LockLostError(progress.problem)
    if progress.outcome == Outcome.DISK_FULL:
        raise DiskFullError(progress.problem)
    if progress.outcome == Outcome.TOO_MANY_ERRORS:
        limit = recipe.max_error_rate
        raise too_many_errors(*progress.judged, limit, progress.reasons, store.newest() or 0)
    if progress.outcome == Outcome.DIVERGED:
        newest = store.newest()
        kept = None if newest is None else store.uri(newest)
        raise diverged(progress.problem, recipe.optimiser.lr, recipe.precision, kept)

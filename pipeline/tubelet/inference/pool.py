"""Actors that each decode and predict, fed by the driver a task at a time.

Ray Data carries a graph of several stages, and pays for that: some ten milliseconds of the driver per task
(usages, budgets, bundles, statistics), and a new start of all workers for tasks of another size. Where one
actor does all of it, the driver has only to say what comes next, and what that is may be decided as late as
it is sent: each task takes about as long as the others, whatever the videos and the cluster are like.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from tubelet.clips import Batch
from tubelet.cluster import SAY_EVERY_S, AskedRoom
from tubelet.inference.cells import read_cell
from tubelet.inference.plan import Task
from tubelet.inference.workers import DecodeJob, Reader
from tubelet.metrics import set_queue_length

if TYPE_CHECKING:
    from tubelet.inference.graph import Layout, Models, Stage

_log = logging.getLogger(__name__)

# Tasks that an actor has: the one that it works on, and the next.
_TASKS_EACH = 2
# The driver wakes up so often at least, and takes all that has ended together.
_TURN_S = 0.1
_LOOK_EVERY_S = 5.0
# A task that its actor died of is cut in half each time, until it is a single request.
_MOST_TRIES = 20
_MOST_FAILED_STARTS = 10
# Actors that share a GPU of a node that joins later: each has the model there, and mostly decodes.
_MOST_ON_GPU = 8


class _Worker:
    """An actor's side: a stage, and what it makes of a task."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._stage: Callable[[pa.Table], Iterator[Batch]]

    def start(self, stage: Stage) -> None:
        """Make the stage: what it raises here comes to the driver as it is."""
        self._stage = stage(*self._arguments)

    def work(self, shard: str, first: int, count: int) -> list[tuple[int, pa.Buffer]]:
        """``(model number, rows)`` of the requests of one task, as Arrow streams."""
        task = pa.table({"shard": [shard], "first": [first], "count": [count]})
        return [
            (int(number), pa.py_buffer(cell))
            for cells in self._stage(task)
            for number, cell in zip(cells["model"], cells["table"], strict=True)
        ]


@dataclass(eq=False)
class _Actor:
    """What the driver knows of an actor; ``start``: until it has started."""

    handle: Any
    start: Any
    on_gpu: bool = False
    tasks: dict[Any, Task] = field(default_factory=dict)


class WorkerPool:
    """Actors on the nodes of the cluster, as many as there is room for; use as a context manager.

    What an actor had in the works when it died is done by another: of each slot at most one task, and one
    that waited. Where nodes with GPUs join a cluster that had none, the actors on them share these.

    Args:
        layout: how many actors, and what each takes.
        decode, read, models, stage: see :func:`tubelet.inference.graph.inference_stream`.
    """

    def __init__(self, decode: DecodeJob, read: Reader, models: Models, layout: Layout, stage: Stage) -> None:
        self._layout, self._name = layout, getattr(stage, "__name__", "stage")
        threads = max(1, int(layout.decoder_cpus))
        self._stage = ray.put(stage)
        self._arguments = [*map(ray.put, (decode, read, models)), threads]
        options = {"num_cpus": layout.decoder_cpus, "memory": layout.memory_bytes, "max_restarts": 0}
        kind = type(self._name, (_Worker,), {})  # what the actors are called
        self._class = ray.remote(scheduling_strategy="SPREAD", **options)(kind)
        self._actors: list[_Actor] = []
        self._again: deque[Task] = deque()
        self._asked = AskedRoom({"CPU": layout.decoder_cpus, "memory": layout.memory_bytes})
        self._looked_s, self._room = float("-inf"), 0
        self._gpus_later = layout.gpus_later and getattr(stage, "predicts", False)
        self._on_gpus, self._share = 0, 0.0  # actors that GPUs have room for, and the GPUs of each
        self._failed_starts = 0
        self._alone_s = self._said_s = time.monotonic()  # without an actor that has started

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            with suppress(Exception):  # a cluster that is gone must not hide what happened
                ray.kill(actor.handle)
        self._actors = []
        with suppress(Exception):
            self._asked.ask(0)
        set_queue_length(self._name, 0)

    def tables(self, tasks: Iterator[Task]) -> Iterator[tuple[int, pa.Table]]:
        """``(model number, rows)`` of all ``tasks``, in any order.

        Raises:
            RayError: actors cannot start, or die again and again.
            Exception: what the stage raised.
        """
        following: Task | None = next(tasks, None)
        while True:
            if following is None and not self._again:
                self._release()
                if not any(actor.tasks for actor in self._actors):
                    return
            else:
                self._fill()
            for _ in range(_TASKS_EACH):  # first one for each, then another
                for actor in self._actors:
                    if actor.start is not None or len(actor.tasks) >= _TASKS_EACH:
                        continue
                    if self._again:
                        self._send(actor, self._again.popleft())
                    elif following is not None:
                        self._send(actor, following)
                        following = next(tasks, None)
            yield from self._settled()

    def _send(self, actor: _Actor, task: Task) -> None:
        actor.tasks[actor.handle.work.remote(task.shard, task.first, task.count)] = task

    def _settled(self) -> Iterator[tuple[int, pa.Table]]:
        """Take what has ended: starts and tasks."""
        waiting = {ref: actor for actor in self._actors for ref in actor.tasks}
        waiting |= {actor.start: actor for actor in self._actors if actor.start is not None}
        ended, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=_TURN_S)
        for ref in ended:
            actor = waiting[ref]
            if actor not in self._actors:
                continue  # it was lost with an earlier one of these
            try:
                found = ray.get(ref)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except RayError as error:
                self._lose(actor, ref, error)
                continue
            if ref == actor.start:
                actor.start, self._failed_starts = None, 0
                continue
            del actor.tasks[ref]
            for number, cell in found:
                yield number, read_cell(cell)

    def _lose(self, actor: _Actor, ref: Any, error: RayError) -> None:
        """What the actor had in the works is for others; where only a result was lost, that task is."""
        died = isinstance(error, RayActorError)
        if actor.start is not None:
            self._failed_starts += 1
            if not died or self._failed_starts > _MOST_FAILED_STARTS:
                raise error
        lost = actor.tasks if died else {ref: actor.tasks.pop(ref)}
        if died:
            self._actors.remove(actor)
            ray.kill(actor.handle)
        for place, task in enumerate(lost.values()):
            if task.tries >= _MOST_TRIES:
                raise error
            # It works on the first; the others only waited.
            self._again.extend(task.halves() if place == 0 else [task])

    def _fill(self) -> None:
        """Start actors where there is room."""
        layout, now_s = self._layout, time.monotonic()
        if now_s - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = now_s
            self._room = self._room_on_nodes() if layout.most_decoders else layout.decoders
            waiting = sum(max(0, len(actor.tasks) - 1) for actor in self._actors)
            set_queue_length(self._name, waiting + len(self._again))
            if layout.most_decoders:
                self._asked.ask(self._more())
        if any(actor.start is None for actor in self._actors):
            self._alone_s = self._said_s = now_s
        elif now_s - self._said_s > SAY_EVERY_S:
            self._said_s = now_s
            _log.warning("waiting for a worker to start (%.0f s so far)", now_s - self._alone_s)
        wanted = max(1, min(self._room, max(layout.most_decoders, layout.decoders)))
        while len(self._actors) < wanted:
            on_gpu = sum(actor.on_gpu for actor in self._actors) < self._on_gpus
            made = self._class.options(num_gpus=self._share) if on_gpu else self._class
            handle = made.remote(*self._arguments)
            self._actors.append(_Actor(handle, handle.start.remote(self._stage), on_gpu))

    def _room_on_nodes(self) -> int:
        """Actors for which the nodes of now have CPUs and memory, were there nothing else on them."""
        room = on_gpus = 0
        shares = [1.0]
        for node in ray.nodes():
            if node["Alive"]:
                cpus, memory, gpus = (node["Resources"].get(name, 0.0) for name in ("CPU", "memory", "GPU"))
                here = min(int(cpus), int(memory // max(self._layout.memory_bytes, 1)))
                room += here
                if gpus and here and self._gpus_later:
                    sharing = min(here, int(_MOST_ON_GPU * gpus))
                    on_gpus += sharing
                    shares.append(math.floor(1e4 * gpus / sharing) / 1e4)  # Ray counts ten-thousandths
        self._on_gpus, self._share = on_gpus, min(shares)
        return room

    def _more(self) -> int:
        """For how many actors to ask for room: as many again, once all that have room work."""
        full = len(self._actors) >= self._room and all(actor.start is None for actor in self._actors)
        return min(self._room, self._layout.most_decoders - self._room) if full else 0

    def _release(self) -> None:
        """Give up actors that have no more to do, but one for what others may leave."""
        self._asked.ask(0)
        idle = [actor for actor in self._actors if not actor.tasks]
        for actor in idle if len(idle) < len(self._actors) else idle[1:]:
            self._actors.remove(actor)
            ray.kill(actor.handle)

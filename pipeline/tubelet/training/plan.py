"""The sample plan: which videos make up which global batch, for all epochs, as a function of the seed.

Sample ``p`` of the run (batch ``p // batch``) is entry ``p % n`` of epoch ``p // n``, and every epoch is
its own permutation of the ``n`` training videos. Nothing is stored but the permutation in use, epochs have
no seams, and resuming at a step is starting there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tubelet.clips.decoder import REFERENCE
from tubelet.clips.draws import generator

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchShape:
    """How one global batch is dealt out: ``accumulate`` micro-batches for each of ``world`` ranks.

    Part ``a * world + r`` is micro-batch ``a`` of rank ``r``. Where ``batch`` does not divide, some parts
    have a row less; in the stream all parts are :attr:`rows` long, filled up with rows of weight 0 that
    nobody decodes, because ranks are dealt whole blocks of equal length.
    """

    batch: int
    world: int
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Micro-batches per global batch."""
        return self.world * self.accumulate

    @property
    def rows(self) -> int:
        """Rows per micro-batch in the stream."""
        return -(-self.batch // self.parts)

    def bounds(self, part: int) -> tuple[int, int]:
        """The rows of the global batch that ``part`` holds: first, and one past the last."""
        each, longer = divmod(self.batch, self.parts)
        start = part * each + min(part, longer)
        return start, start + each + (part < longer)


@dataclass(frozen=True)
class Validation:
    """When to look at other videos between steps: how many, and how many clips of each."""

    videos: int
    views: int
    every: int | None
    total_steps: int

    def due(self, steps_done: int) -> bool:
        """Whether to validate once so many steps are done: on schedule, and at the end."""
        return steps_done == self.total_steps or bool(self.every and steps_done % self.every == 0)

    def rounds(self, shape: BatchShape) -> int:
        """Micro-batches of each rank."""
        return -(-self.videos * self.views // (shape.rows * shape.world))


@dataclass(frozen=True)
class Plan:
    """The training videos in a fixed order, and what to draw from them.

    ``table`` has the columns of ``REFERENCE``, one row per training video. ``groups`` int64 ``(n,)`` makes
    every group (class) equally frequent; None draws every video once per epoch. Validation is part of the
    same stream, so that it finds its clips decoded, and training after it too.
    """

    table: pa.Table
    batch: int
    seed: int
    groups: Ints | None = None
    validation: Validation | None = None
    validation_table: pa.Table | None = None

    def blocks(self, first: int, last: int, shape: BatchShape) -> Iterator[pa.Table]:
        """Micro-batches of the steps ``first <= step < last`` and of the validations due after each."""
        for step in range(first, last):
            yield from self.requests(step, shape)
            if self.validation is not None and self.validation.due(step + 1):
                assert self.validation_table is not None
                yield from _validation_requests(self.validation, self.validation_table, step + 1, shape)

    def samples(self, step: int) -> tuple[Ints, Ints, Ints]:
        """Of global batch ``step``: row indices, epochs, and how often the row came before in its epoch."""
        n = len(self.table)
        position = np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64)
        epochs, places = position // n, position % n
        index, repeat = np.empty_like(position), np.empty_like(position)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, repeats = self.epoch(int(epoch))
            index[here], repeat[here] = order[places[here]], repeats[places[here]]
        return index, epochs, repeat

    def epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The order of one epoch, ``(n,)`` row indices, and for each how often it came before."""
        if self.groups is None:
            return _permutation(self.seed, epoch, len(self.table))
        return _balanced(self.seed, epoch, self.groups.tobytes())

    def requests(self, step: int, shape: BatchShape) -> Iterator[pa.Table]:
        """The clip requests of one global batch: a table of ``shape.rows`` rows for each part, in order.

        Columns: ``REFERENCE``, ``index`` (row of ``table``), ``epoch``, ``repeat``, ``step``, ``part``,
        ``view`` (-1: a training clip, else that of a validation) and ``weight`` (1, or 0 for filling).
        """
        index, epochs, repeats = self.samples(step)
        for part in range(shape.parts):
            start, stop = shape.bounds(part)
            # Filling repeats the part's last row (or the batch's first): never decoded, only there to count.
            rows = np.minimum(np.arange(start, start + shape.rows), max(stop - 1, 0))
            weight = np.arange(start, start + shape.rows) < stop
            yield _requests(
                self.table,
                index[rows],
                epoch=epochs[rows],
                repeat=repeats[rows],
                step=step,
                part=part,
                view=-1,
                weight=weight,
            )


def _validation_requests(
    validation: Validation, table: pa.Table, step: int, shape: BatchShape
) -> Iterator[pa.Table]:
    """Views are rows here; block ``p`` is for rank ``p % world``."""
    clips = validation.videos * validation.views
    for part in range(validation.rounds(shape) * shape.world):
        place = np.arange(part * shape.rows, (part + 1) * shape.rows)
        rows = np.minimum(place, clips - 1)
        index, view = rows // validation.views, rows % validation.views
        weight = place < clips
        yield _requests(table, index, weight, epoch=0, repeat=0, step=step, part=part, view=view)


def _requests(table: pa.Table, index: Ints, weight: npt.NDArray[np.bool_], **columns: Ints | int) -> pa.Table:
    """Rows ``index`` of ``table`` with ``columns``, whole numbers, beside them."""
    requests = table.select(REFERENCE).take(pa.array(index))
    for name, values in {"index": index, **columns}.items():
        full = np.broadcast_to(np.asarray(values, np.int64), index.shape)
        requests = requests.append_column(name, pa.array(full))
    return requests.append_column("weight", pa.array(weight.astype(np.float32)))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> tuple[Ints, Ints]:
    order = generator("plan", seed, epoch).permutation(count)
    return order.astype(np.int64), np.zeros(count, np.int64)


@lru_cache(maxsize=4)
def _balanced(seed: int, epoch: int, group_bytes: bytes) -> tuple[Ints, Ints]:
    """``n`` draws; every group has ``n / groups`` of them, rounded either way, and cycles its members."""
    groups = np.frombuffer(group_bytes, np.int64)
    draw = generator("balanced", seed, epoch)
    names = draw.permutation(np.unique(groups))
    places = draw.permutation(np.arange(len(groups)) % len(names))
    order, repeats = np.empty(len(groups), np.int64), np.empty(len(groups), np.int64)
    for i, name in enumerate(names):
        members = draw.permutation(np.flatnonzero(groups == name))
        here = np.flatnonzero(places == i)
        turn = np.arange(len(here))
        order[here], repeats[here] = members[turn % len(members)], turn // len(members)
    return order, repeats

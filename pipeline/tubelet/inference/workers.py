"""What runs in the actors of the graph: requests become tubelets, tubelets become rows.

Nothing here imports torch, which takes seconds: who only decodes never does, and who also predicts decodes
its first clips meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

import pyarrow as pa

from tubelet.clips import Batch, ClipDecoder, ClipSpec
from tubelet.clips.decoder import numbered
from tubelet.clips.tubelets import Uint8
from tubelet.inference.blocks import block_of
from tubelet.inference.cells import cells_of
from tubelet.storage import StorageOptions
from tubelet.video import Limits

if TYPE_CHECKING:
    from tubelet.inference.predictor import Job, Predictor

Transform = Callable[[Uint8, str, ClipSpec], Uint8]
"""Changes the views of one video, uint8 ``(V, tokens, bytes)``, by its key; picklable."""

Reader = Callable[[pa.Table], Iterator[pa.Table]]
"""Makes the requests (see ``schema.REQUEST_SCHEMA``) of one task in the worker; picklable."""


# A table is handed on before it is larger: one row of a block is never split.
_CELL_BYTES = 8 << 20


@dataclass(frozen=True)
class DecodeJob:
    """What a decode worker makes of each request.

    Attributes:
        specs: the clips that the models take, without repeats; one pass over the video makes them all.
        views: ``(temporal, spatial)`` views of each.
        transform: what is done to the clips before a model sees them.
        block_bytes: clips are handed on in blocks of about this size.
    """

    specs: tuple[ClipSpec, ...]
    views: tuple[int, int] = (1, 1)
    storage: StorageOptions = field(default_factory=StorageOptions)
    limits: Limits = field(default_factory=Limits)
    transform: Transform | None = None
    block_bytes: int = 32 << 20

    @property
    def rows_at_once(self) -> int:
        """Requests whose clips lie in memory together."""
        return max(1, min(16, self.block_bytes // max(self.clip_bytes, 1)))

    @property
    def clip_bytes(self) -> int:
        """Bytes that one decoded request hands to the predictor."""
        views = self.views[0] * self.views[1]
        return sum(spec.tokens * spec.token_bytes * views for spec in self.specs)


class RequestDecoder:
    """A callable for ``map_batches`` in an actor: tasks to decoded requests, a few at a time.

    See :class:`ClipDecoder` for the columns that it adds to those of the requests.
    """

    def __init__(self, job: DecodeJob, read: Reader) -> None:
        self._job, self._read = job, read
        self._decoder = ClipDecoder(job.specs, views=job.views, storage=job.storage, limits=job.limits)

    def __call__(self, task: pa.Table) -> Iterator[Batch]:
        """The requests of one task, decoded."""
        for rows in self._read(task):
            for start in range(0, rows.num_rows, self._job.rows_at_once):
                some = rows.slice(start, self._job.rows_at_once)
                decoded = self._decoder({name: some[name].to_numpy() for name in some.column_names})
                yield self._transformed(decoded)

    def close(self) -> None:
        """End the decode process."""
        self._decoder.close()

    def _transformed(self, batch: Batch) -> Batch:
        if self._job.transform is None:
            return batch
        for s, spec in enumerate(self._job.specs):
            tubelets = batch[numbered("tubelets", s)]
            for i, key in enumerate(batch["key"]):
                if not batch["failed"][i]:
                    tubelets[i] = self._job.transform(tubelets[i], str(key), spec)
        return batch


class BlockDecoder(RequestDecoder):
    """As :class:`RequestDecoder`, for predictors in other actors: see :func:`block_of`."""

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """The requests of one task, decoded, a block per row."""
        for batch in super().__call__(task):  # a generator, as Ray Data wants one
            yield block_of(batch)


class DecodePredict:
    """Both stages in one actor: where they share the CPU, handing clips over would cost more than it wins.

    Attributes:
        predicts: a GPU, or a share of one, is of use.
    """

    predicts = True

    def __init__(
        self, decode: DecodeJob, read: Reader, models: Callable[[], Sequence[Job]], threads: int
    ) -> None:
        self._decoder = RequestDecoder(decode, read)
        self._models, self._threads = models, threads
        self._made: Predictor | None = None
        self._importing = Thread(target=_import_predictor, name="import", daemon=True)
        self._importing.start()

    def __call__(self, task: pa.Table) -> Iterator[Batch]:
        """The requests of one task to tables of rows, one for each model: the driver pays for each table."""
        gathered: list[list[pa.Table]] = []
        for decoded in self._decoder(task):
            gathered.append(self._predictor().tables(decoded))
            if sum(table.nbytes for tables in gathered for table in tables) > _CELL_BYTES:
                yield _joined(gathered)
                gathered = []
        if gathered:
            yield _joined(gathered)

    def close(self) -> None:
        """End the decode process."""
        self._decoder.close()

    def _predictor(self) -> Predictor:
        # Made in the thread that predicts: how many threads torch may use is that thread's own.
        if self._made is None:
            self._importing.join()
            from tubelet.inference.predictor import Predictor

            self._made = Predictor(self._models, self._threads)
        return self._made


def _import_predictor() -> None:
    # What is wrong with it shows when it is imported once more, where it is used.
    with suppress(Exception):
        import_module("tubelet.inference.predictor")


def _joined(gathered: Sequence[Sequence[pa.Table]]) -> Batch:
    return cells_of([pa.concat_tables(tables) for tables in zip(*gathered, strict=True)])

"""The driver's loop: a plan through the graph, new rows into the sinks, passing failures once more."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.cluster import NodeWatch
from tubelet.error_rate import WINDOW, ErrorRate
from tubelet.inference.here import result_tables
from tubelet.inference.output import OutputFiles, parquet_bytes
from tubelet.inference.plan import Plan, Shard, ShardRequests, read_shard
from tubelet.inference.schema import table_of
from tubelet.inference.sink import PredictionSink
from tubelet.inference.workers import DecodeJob, DecodePredict
from tubelet.progress import ProgressLine
from tubelet.video import TRANSIENT, Status

if TYPE_CHECKING:
    from tubelet.inference.graph import Layout, Models, Stage

_AGAIN = "_plan/again.parquet"
_GATHER_S = 0.2
_TRANSIENT = pa.array(sorted(TRANSIENT))

Ints = npt.NDArray[np.int64]

OnRows = Callable[[int, pa.Table], None]
"""Told of new rows of model number n."""


class Driver:
    """Makes the rows of one plan and publishes them; each request is answered once by each model.

    Args:
        root: where the plan lies.
        sinks: of each model.
        error_rate: ends the job when too many videos fail.

    Attributes:
        on_rows: told of the rows that are new; may be set.
    """

    def __init__(
        self,
        plan: Plan,
        root: OutputFiles,
        sinks: Sequence[PredictionSink],
        error_rate: ErrorRate,
    ) -> None:
        self.plan, self.root, self.sinks, self.error_rate = plan, root, sinks, error_rate
        self.on_rows: OnRows = lambda number, rows: None
        self._seen = [np.zeros(plan.requests, np.bool_) for _ in sinks]
        self._again: dict[int, int] = {}
        self._second = False
        self._errors = self._timed = 0
        self._decode_s = self._predict_s = 0.0
        self._gathered: list[list[pa.Table]] = [[] for _ in sinks]
        self._handed_s = time.monotonic()

    def run(
        self,
        decode: DecodeJob,
        models: Models,
        layout: Layout,
        *,
        name: str,
        stage: Stage = DecodePredict,
    ) -> None:
        """Answer what is planned, on Ray; whatever happens, what was answered is published.

        Args:
            name: of the job, for the progress line.
            stage: see :func:`tubelet.inference.graph.inference_stream`.

        Raises:
            UserError: too many videos failed.
        """
        nodes, answers = NodeWatch(), self._by_graph if layout.predictors else self._by_pool
        with self._publishing(name) as progress, closing(answers(decode, models, layout, stage)) as found:
            for number, rows in found:
                nodes.look()
                self._take(number, rows, progress)

    def _by_pool(
        self, decode: DecodeJob, models: Models, layout: Layout, stage: Stage
    ) -> Generator[tuple[int, pa.Table]]:
        """Tables of all requests, and once more of those that failed in passing."""
        from tubelet.inference.pool import WorkerPool  # imports Ray

        shards = list(self.plan.shards)
        reader = ShardRequests(shards, self.root).reader()
        with WorkerPool(decode, reader, models, layout, stage) as pool:
            while shards:
                tasks = ShardRequests(shards, self.root).cut(
                    lambda left: layout.next_rows(self._request_s(layout), left), decode.rows_at_once
                )
                yield from pool.tables(tasks)
                self._hand_over()
                shards = [] if self._second else self._second_pass()

    def _by_graph(
        self, decode: DecodeJob, models: Models, layout: Layout, stage: Stage
    ) -> Generator[tuple[int, pa.Table]]:
        """The same where decoders hand their clips to predictors."""
        # Imports Ray Data, which takes seconds.
        from tubelet.inference.graph import inference_stream, iter_result_tables

        total, shards = self.plan.requests, list(self.plan.shards)
        layout = layout.measuring(total)
        while shards:
            some = _first(shards, layout.rows_at_once)
            requests = ShardRequests(some, self.root)
            stream = inference_stream(requests, decode, models, layout, clips=total, stage=stage)
            yield from iter_result_tables(stream)
            self._hand_over()
            shards = shards[len(some) :]
            if not shards and not self._second:
                shards = self._second_pass()
            layout = layout.measured(self._request_s(layout), sum(shard.rows for shard in shards))

    def run_here(self, decode: DecodeJob, models: Models, *, name: str) -> None:
        """As :meth:`run`, in this process, without Ray: for a few videos, starting it takes longer."""
        shards = list(self.plan.shards)
        with self._publishing(name) as progress:
            while shards:
                for number, rows in result_tables(ShardRequests(shards, self.root), decode, models):
                    self._take(number, rows, progress)
                self._hand_over()
                shards = [] if self._second else self._second_pass()

    @contextmanager
    def _publishing(self, name: str) -> Iterator[ProgressLine]:
        try:
            with ProgressLine(name, self.plan.requests, "videos") as progress:
                yield progress
        finally:
            # Also after a failure: what is done is published, so that the next run need not do it again.
            self._hand_over()
            for sink in self.sinks:
                sink.close()

    def check_known_errors(self) -> None:
        """End before the first video is decoded where the index found too many of them broken.

        Raises:
            UserError: more than the limit.
        """
        plan = self.plan
        if plan.work >= WINDOW:
            self.error_rate.check(plan.reasons.total(), plan.work, plan.reasons, plan.examples)

    def publish_known_errors(self, origins: Sequence[Mapping[str, Any]]) -> None:
        """Rows for what the index already found broken: no need to fetch it again.

        Args:
            origins: the columns that say where a row comes from, for each model.
        """
        for shard in self.plan.known_errors:
            known = read_shard(self.root.read(shard.name)).to_pylist()
            for number, sink in enumerate(self.sinks):
                rows = [row | dict(origins[number]) for row in known if row["models"] >> number & 1]
                if rows:
                    table = sink.counted(table_of(rows, sink.schema))
                    sink.add(table)
                    self.on_rows(number, table)
                    self._errors += table.num_rows if number == 0 else 0

    def remove_plan(self) -> None:
        """Everything is published: the plan has done its work."""
        for shard in [*self.plan.shards, *self.plan.known_errors, Shard(_AGAIN, 0)]:
            storage.delete(self.root.path(shard.name), self.root.options)

    def _take(self, number: int, rows: pa.Table, progress: ProgressLine) -> None:
        """Gather new rows for the sink."""
        fresh = self._fresh(number, rows)
        if not fresh.all():
            rows = rows.filter(pa.array(fresh))
        if rows.num_rows:
            self._gathered[number].append(rows)
            self._decode_s += pc.sum(rows["decode_s"]).as_py() if number == 0 else 0.0
            self._predict_s += pc.sum(rows["predict_s"]).as_py()
        # What comes in quick succession goes on together: each step costs the same for one row and for many.
        if time.monotonic() - self._handed_s > _GATHER_S:
            self._hand_over()
        answered = pc.count_distinct(rows["request"]).as_py() if rows.num_rows else 0
        if number == 0:
            # Of each row, since each says what its request cost: of the clips of one video all do.
            self._timed += rows.num_rows
            progress.advance(answered, errors=self._errors)

    def _request_s(self, layout: Layout) -> float:
        """Seconds that a request took its decoder so far."""
        worked_s = self._decode_s + (0.0 if layout.predictors else self._predict_s)
        return worked_s / self._timed if self._timed else 0.0

    def _hand_over(self) -> None:
        self._handed_s = time.monotonic()
        for number, sink in enumerate(self.sinks):
            if self._gathered[number]:
                rows = sink.counted(pa.concat_tables(self._gathered[number]))
                self._gathered[number] = []
                sink.add(rows)
                self.on_rows(number, rows)

    def _fresh(self, number: int, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows count: not those that came before, nor first failures that deserve another try.

        A request may be answered by several rows; they come in one table.
        """
        places = rows["request"].to_numpy()
        fresh: npt.NDArray[np.bool_] = ~self._seen[number][places]
        failed = _is(rows["status"], Status.ERROR)
        if number == 0 and not self._second:
            self._watch(rows, places, fresh, failed)
        if not self._second and failed.any():
            passing = fresh & failed & pc.is_in(rows["error_code"], _TRANSIENT).to_numpy()
            for place in places[passing].tolist():
                self._again[place] = self._again.get(place, 0) | 1 << number
            fresh &= ~passing
        self._seen[number][places[fresh]] = True
        if number == 0:
            self._errors += int(np.count_nonzero(fresh & failed))
        return fresh

    def _watch(
        self, rows: pa.Table, places: Ints, fresh: npt.NDArray[np.bool_], failed: npt.NDArray[np.bool_]
    ) -> None:
        """Show the rate of failures one row per request, in their order."""
        first = np.unique(places, return_index=True)[1]
        first = np.sort(first[fresh[first]])
        well = 0
        if not failed[first].any():
            self.error_rate.see_well(len(first))
            return
        for row in first.tolist():
            if not failed[row]:
                well += 1
                continue
            self.error_rate.see_well(well)
            well = 0
            self.error_rate.see(rows["error_code"][row].as_py(), rows["error"][row].as_py())
        self.error_rate.see_well(well)

    def _second_pass(self) -> list[Shard]:
        """Write the requests that failed in passing as a plan of their own; returns its shards."""
        self._second = True
        if not self._again:
            return []
        again = pa.array(sorted(self._again), pa.int64())
        found = []
        for shard in self.plan.shards:
            requests = read_shard(self.root.read(shard.name))
            found.append(requests.filter(pc.is_in(requests["request"], again)))
        rows = pa.concat_tables(found)
        models = pa.array([self._again[place] for place in rows["request"].to_pylist()], pa.int64())
        rows = rows.set_column(rows.column_names.index("models"), "models", models)
        self.root.write(_AGAIN, parquet_bytes(rows))
        return [Shard(_AGAIN, rows.num_rows)]


def _is(column: pa.ChunkedArray, value: str) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(pc.equal(column, str(value)), False).to_numpy())


def _first(shards: Sequence[Shard], rows: int) -> Sequence[Shard]:
    """The first of ``shards``, of about ``rows`` requests; what little is left beyond comes with them."""
    total = np.cumsum([shard.rows for shard in shards])
    if total[-1] <= 1.5 * rows:
        return shards
    return shards[: max(1, int(np.searchsorted(total, rows)))]

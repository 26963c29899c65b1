"""The driver's loop: a plan through the graph, new rows into the sinks, passing failures once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tubelet import storage
from tubelet.error_rate import WINDOW, ErrorRate
from tubelet.inference.graph import Layout, Models, inference_stream, iter_result_tables
from tubelet.inference.output import OutputFiles
from tubelet.inference.plan import Plan, Shard, ShardRequests, encode_requests, read_shard
from tubelet.inference.schema import table_of
from tubelet.inference.sink import PredictionSink
from tubelet.inference.workers import DecodeJob
from tubelet.progress import ProgressLine
from tubelet.video import TRANSIENT, Status

_AGAIN = "_plan/again.parquet"

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
        self._errors = 0

    def run(self, decode: DecodeJob, models: Models, layout: Layout, *, name: str) -> None:
        """Answer what is planned; whatever happens, what was answered is published.

        Args:
            name: of the job, for the progress line.

        Raises:
            UserError: too many videos failed.
        """
        total, shards = self.plan.requests, list(self.plan.shards)
        try:
            with ProgressLine(name, total, "videos") as progress:
                while shards:
                    requests = ShardRequests(shards, self.root)
                    stream = inference_stream(requests, decode, models, layout, clips=total)
                    for number, rows in iter_result_tables(stream):
                        taken = self._take(number, rows)
                        if number == 0:
                            progress.advance(taken, errors=self._errors)
                    shards = [] if self._second else self._second_pass()
        finally:
            # Also after a failure: what is done is published, so that the next run need not do it again.
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
                    self._count(number, table)

    def remove_plan(self) -> None:
        """Everything is published: the plan has done its work."""
        for shard in [*self.plan.shards, *self.plan.known_errors, Shard(_AGAIN, 0)]:
            storage.delete(self.root.path(shard.name), self.root.options)

    def _take(self, number: int, rows: pa.Table) -> int:
        """Hand new rows to the sink; returns how many requests they answer."""
        fresh = rows.filter(pa.array(self._fresh(number, rows)))
        fresh = self.sinks[number].counted(fresh)
        if not fresh.num_rows:
            return 0
        self.sinks[number].add(fresh)
        self._count(number, fresh)
        return len(fresh["request"].unique())

    def _count(self, number: int, rows: pa.Table) -> None:
        self.on_rows(number, rows)
        if number == 0:
            self._errors += rows["status"].to_pylist().count(Status.ERROR)

    def _fresh(self, number: int, rows: pa.Table) -> list[bool]:
        """Which rows count: not those that came before, nor first failures that deserve another try.

        A request may be answered by several rows; they come in one table.
        """
        kept: dict[int, bool] = {}
        keep = []
        columns = ("request", "status", "error_code", "error")
        for place, status, code, reason in zip(*(rows[c].to_pylist() for c in columns), strict=True):
            if place not in kept:
                kept[place] = self._is_fresh(number, place, status, code, reason)
            keep.append(kept[place])
        return keep

    def _is_fresh(self, number: int, place: int, status: str, code: str | None, reason: str | None) -> bool:
        if self._seen[number][place]:
            return False
        if number == 0 and not self._second:
            self.error_rate.see(code if status == Status.ERROR else None, reason)
        if status == Status.ERROR and code in TRANSIENT and not self._second:
            self._again[place] = self._again.get(place, 0) | 1 << number
            return False
        self._seen[number][place] = True
        return True

    def _second_pass(self) -> list[Shard]:
        """Write the requests that failed in passing as a plan of their own; returns its shards."""
        self._second = True
        if not self._again:
            return []
        rows: list[dict[str, Any]] = []
        for shard in self.plan.shards:
            for row in read_shard(self.root.read(shard.name)).to_pylist():
                if row["request"] in self._again:
                    rows.append(row | {"models": self._again[row["request"]]})
        self.root.write(_AGAIN, encode_requests(rows))
        return [Shard(_AGAIN, len(rows))]

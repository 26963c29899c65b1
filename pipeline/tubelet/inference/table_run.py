"""Making what a plan leaves of a table of videos: what embedding and copying share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet.error_rate import ErrorRate
from tubelet.inference.driver import Driver
from tubelet.inference.graph import Layout, check_reachable, resources_for
from tubelet.inference.plan import Plan
from tubelet.inference.sink import PredictionSink
from tubelet.inference.workers import DecodeJob
from tubelet.video import ErrorCode, Status, to_retry


@dataclass
class VideoTally:
    """Counts videos as their rows come.

    Attributes:
        summed: columns that are added up, where the rows have them.
        first: keeps one row of each video; None: there is one.
        sums: of ``summed``.
    """

    summed: Iterable[str] = ()
    first: str | None = None
    ok: int = 0
    errors: int = 0
    to_retry: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, int]:
        """Reasons of videos that nothing was made of."""
        return {code: count for code, count in self.reasons.items() if code != ErrorCode.PARTIAL}

    def add(self, number: int, rows: pa.Table) -> None:
        """Count ``rows`` of sink ``number``, of which there is one."""
        if self.first is not None:
            rows = rows.filter(pc.equal(rows[self.first], 0))
        failed = rows["status"].to_pylist().count(Status.ERROR)
        self.errors += failed
        self.ok += rows.num_rows - failed
        columns = (rows[name].to_pylist() for name in ("error_code", "error", "attempts"))
        for code, reason, attempts in zip(*columns, strict=True):
            if code is not None:
                self.reasons[code] += 1
                self.examples.setdefault(code, reason or "")
                self.to_retry += to_retry(code, attempts)
        for name in self.summed:
            if name in rows.column_names:
                self.sums[name] += pc.sum(rows[name]).as_py() or 0


def make_rows(
    plan: Plan,
    sink: PredictionSink,
    rate: ErrorRate,
    tally: VideoTally,
    *,
    known: Mapping[str, Any],
    decode: DecodeJob,
    start_ray: Callable[[], None],
    run: Callable[[Driver, Layout], None],
    workers: int | None,
    predictors: int | None,
    gpus: float | None,
) -> None:
    """Publish what ``plan`` has left, and close ``sink``.

    Args:
        rate: judges the failures on the way and at the end.
        known: columns of the rows of videos that the manifest knows to be unreadable.
        start_ray: called once there is something to open.
        run: runs the driver on the resources that were laid out.
        workers, predictors, gpus: as :func:`tubelet.inference.graph.resources_for`.

    Raises:
        UserError: too many failures; the nodes cannot reach the output.
    """
    driver = Driver(plan, sink.files, [sink], rate)
    driver.on_rows = tally.add
    driver.check_known_errors()
    driver.publish_known_errors([dict(known)])
    if plan.requests:
        start_ray()
        check_reachable(sink.files, [shard.name for shard in plan.shards[:1]])
        with resources_for(
            decode,
            plan.requests,
            workers=workers,
            predictors=predictors,
            gpus=gpus,
            largest_pixels=plan.largest_pixels,
        ) as layout:
            run(driver, layout)
    sink.close()
    driver.remove_plan()
    rate.judge(tally.ok + tally.errors, tally.failures, tally.examples)

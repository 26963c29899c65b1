"""The labelling job: manifest minus what is published, through Ray Data, into the exactly-once sink."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tubelet import storage
from tubelet.corpus.manifest import is_manifest, read_manifest
from tubelet.error_rate import WINDOW, ErrorRate
from tubelet.inference.graph import (
    Layout,
    check_reachable,
    inference_stream,
    iter_result_tables,
    plan_resources,
)
from tubelet.inference.output import MakePage, OutputFiles, parquet_bytes
from tubelet.inference.schema import table_of
from tubelet.inference.shipping import LoadedModels, ship
from tubelet.inference.sink import part_name, part_numbers
from tubelet.inference.workers import DecodeJob
from tubelet.labelling.config import LabelConfig
from tubelet.labelling.export import check_target, export
from tubelet.labelling.plan import Shard, ShardRequests, encode_requests, read_shard
from tubelet.labelling.prepare import Prepared, prepare
from tubelet.labelling.report import Report, Summary, Tally, summarise
from tubelet.labelling.windows import INTERVAL_COLUMNS, intervals_table
from tubelet.progress import ProgressLine
from tubelet.storage.lock import OutputLock
from tubelet.video import TRANSIENT, ErrorCode, Status

_log = logging.getLogger(__name__)

INTERVALS = "_intervals/intervals.parquet"
PAGE = "_review/page.html"
_AGAIN = "_plan/again.parquet"


class LabelJob:
    """One run of ``tubelet label``."""

    def __init__(self, config: LabelConfig) -> None:
        self.config = config
        self.options = config.storage
        self.out = storage.normalise_uri(config.out)

    def run(self, start_ray: Callable[[], None], make_page: MakePage | None = None) -> Summary:
        """Label what is left.

        Args:
            start_ray: called once there is something to do.
            make_page: called at the end; its page is kept with the rows and with the run.

        Raises:
            UserError: a bad input, an output of something else or in use, too many failures.
        """
        if self.config.export is not None:
            check_target(self.config.export)
        with OutputLock(self.out, job="tubelet label", options=self.options) as lock:
            prepared = prepare(self.config, lock.check)
            if prepared.plan.work:
                start_ray()
                summary = Run(self.config, prepared, make_page).go()
            else:
                summary = summarise(prepared, Tally(), 0.0, None)
            if self.config.export is not None:
                export(prepared.sinks[0].files, self.config.export)
            return summary

    def describe(self) -> str:
        """What :meth:`run` would do; writes nothing.

        Raises:
            UserError: the source or a model is not there.
        """
        source, options = self.config.source, self.options
        models = LoadedModels.load(self.config.models, self.config.tracking_uri, options)
        names = ", ".join(bundle.identity for bundle in models.bundles)
        if not is_manifest(source, options):
            count = sum(1 for _ in storage.list_objects(source, options, self.config.include))
            return f"would index {count} objects of {source}, and label with {names} into {self.out}"
        manifest = read_manifest(source, ["key", "etag", "status"], options=options)
        return f"would label {manifest.num_rows} objects of {source} with {names} into {self.out}"


class Run:
    """The part of the job that decodes."""

    def __init__(self, config: LabelConfig, prepared: Prepared, make_page: MakePage | None) -> None:
        self.config, self.prepared, self._make_page = config, prepared, make_page
        self.error_rate = ErrorRate(
            config.max_error_rate,
            "What is done is published: mend the cause and set --retry-errors",
        )
        requests = prepared.plan.requests
        self._seen = [np.zeros(requests, np.bool_) for _ in prepared.sinks]
        self._again: dict[int, int] = {}
        self._second = False

    def go(self) -> Summary:
        """Label what is planned, publish it, tell MLflow."""
        import ray

        prepared = self.prepared
        self._check_known_errors()
        check_reachable(prepared.root, [shard.name for shard in prepared.plan.shards[:1]])
        decode = DecodeJob(prepared.models.specs, self.config.views, prepared.root.options)
        layout = plan_resources(
            ray.cluster_resources(),
            decode,
            prepared.plan.requests,
            workers=self.config.workers,
            predictors=self.config.predictors,
            gpus=self.config.gpus,
            largest_pixels=prepared.plan.largest_pixels,
        )
        self.report = Report.start(self.config, prepared, layout)
        try:
            self._publish_known_errors()
            self._label(decode, layout)
            self._after()
        except BaseException as error:
            self.report.stop(error)
            raise
        return self.report.summary

    def _label(self, decode: DecodeJob, layout: Layout) -> None:
        prepared, total = self.prepared, self.prepared.plan.requests
        models = ship(prepared.models.jobs(prepared.sampling, prepared.answers), prepared.models.bundles)
        shards = list(prepared.plan.shards)
        try:
            with ProgressLine("label", total, "videos") as progress:
                while shards:
                    requests = ShardRequests(shards, prepared.root)
                    stream = inference_stream(requests, decode, models, layout, clips=total)
                    for number, rows in iter_result_tables(stream):
                        taken = self._take(number, rows)
                        if number == 0:
                            progress.advance(taken, errors=self.report.errors)
                    shards = [] if self._second else self._second_pass()
        finally:
            # Also after a failure: what is done is published, so that the next run need not do it again.
            for sink in prepared.sinks:
                sink.close()

    def _take(self, number: int, rows: pa.Table) -> int:
        """Hand new rows to the sink; returns how many there were."""
        sink = self.prepared.sinks[number]
        fresh = sink.counted(rows.filter(pa.array(self._fresh(number, rows))))
        if fresh.num_rows:
            sink.add(fresh)
            self.report.add(number, fresh)
        return int(fresh.num_rows)

    def _fresh(self, number: int, rows: pa.Table) -> list[bool]:
        """Which rows count: not those that came before, nor first failures that deserve another try."""
        keep = []
        columns = ("request", "status", "error_code", "error")
        for place, status, code, reason in zip(*(rows[c].to_pylist() for c in columns), strict=True):
            keep.append(not self._seen[number][place])
            if not keep[-1]:
                continue
            if number == 0 and not self._second:
                self.error_rate.see(code if status == Status.ERROR else None, reason)
            if status == Status.ERROR and code in TRANSIENT and not self._second:
                self._again[place] = self._again.get(place, 0) | 1 << number
                keep[-1] = False
            else:
                self._seen[number][place] = True
        return keep

    def _second_pass(self) -> list[Shard]:
        """Write the requests that failed in passing as a plan of their own; returns its shards."""
        self._second = True
        if not self._again:
            return []
        root = self.prepared.root
        rows: list[dict[str, Any]] = []
        for shard in self.prepared.plan.shards:
            for row in read_shard(root.read(shard.name)).to_pylist():
                if row["request"] in self._again:
                    rows.append(row | {"models": self._again[row["request"]]})
        root.write(_AGAIN, encode_requests(rows))
        return [Shard(_AGAIN, len(rows))]

    def _check_known_errors(self) -> None:
        plan = self.prepared.plan
        if plan.work >= WINDOW:
            self.error_rate.check(plan.reasons.total(), plan.work, plan.reasons, plan.examples)

    def _publish_known_errors(self) -> None:
        """Rows for what the index already found broken: no need to fetch it again."""
        prepared = self.prepared
        for shard in prepared.plan.known_errors:
            known = read_shard(prepared.root.read(shard.name)).to_pylist()
            for number, sink in enumerate(prepared.sinks):
                model = prepared.models.bundles[number].identity
                origin = {"views": 0, "model": model, "sampling": prepared.sampling[number]}
                rows = [row | origin for row in known if row["models"] >> number & 1]
                if rows:
                    table = sink.counted(table_of(rows, sink.schema))
                    sink.add(table)
                    self.report.add(number, table)

    def _after(self) -> None:
        """Everything is published; what follows from it, and the summary."""
        if self.config.windows is not None:
            for sink in self.prepared.sinks:
                write_intervals(sink.files)
        root, plan = self.prepared.root, self.prepared.plan
        for shard in [*plan.shards, *plan.known_errors, Shard(_AGAIN, 0)]:
            storage.delete(root.path(shard.name), root.options)
        self.report.finish()
        self._page()
        tally = self.report.tallies[0]
        failures = {code: count for code, count in tally.reasons.items() if code != ErrorCode.PARTIAL}
        self.error_rate.judge(tally.ok + tally.errors, failures, tally.examples)
        self.report.close()

    def _page(self) -> None:
        """The page beside the rows, and in the run; a page that cannot be made is no reason to fail."""
        if self._make_page is None:
            return
        files = self.prepared.sinks[0].files
        try:
            self.report.link_page(self._make_page(files.uri, files.path(PAGE)), files.read(PAGE))
        except Exception:
            _log.warning("no review page could be made at %s", files.path(PAGE), exc_info=True)


def write_intervals(files: OutputFiles) -> None:
    """Merge the windows at the root of ``files`` into ``_intervals/intervals.parquet``, replaced whole."""
    numbers = part_numbers(files.names())
    table = intervals_table(files.read_table(part_name(number), INTERVAL_COLUMNS) for number in numbers)
    files.write(INTERVALS, parquet_bytes(table))

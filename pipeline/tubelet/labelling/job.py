"""The labelling job: manifest minus what is published, through Ray Data, into the exactly-once sink."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tubelet import storage
from tubelet.corpus.manifest import is_manifest, read_manifest
from tubelet.error_rate import ErrorRate
from tubelet.inference.driver import Driver
from tubelet.inference.output import MakePage, OutputFiles, check_output, parquet_bytes
from tubelet.inference.shipping import LoadedModels, ship
from tubelet.inference.sink import part_name, part_numbers
from tubelet.inference.workers import DecodeJob
from tubelet.labelling.config import LabelConfig
from tubelet.labelling.export import check_target, export
from tubelet.labelling.intervals import INTERVAL_COLUMNS, intervals_table
from tubelet.labelling.prepare import Prepared, prepare
from tubelet.labelling.report import Report, Summary, Tally, summarise
from tubelet.storage.lock import OutputLock
from tubelet.tracking import Tracker
from tubelet.video import ErrorCode

if TYPE_CHECKING:
    from tubelet.inference.graph import Layout
    from tubelet.inference.predictor import ModelJob

_log = logging.getLogger(__name__)

INTERVALS = "_intervals/intervals.parquet"
PAGE = "_review/page.html"

# Views of few local files (of their windows, or of whole videos) that are looked at without Ray. With more,
# its other workers are worth their start; and up to so many requests a task on Ray holds one request too, so
# the rows are the same to the bit.
MOST_HERE = 16


class LabelJob:
    """One run of ``tubelet label``.

    Args:
        on_cluster: all work is a cluster's; else that of few local files may be done in this process.
    """

    def __init__(self, config: LabelConfig, *, on_cluster: bool = False) -> None:
        self.config = config
        self.options = config.storage
        self.out = storage.normalise_uri(config.out)
        self.small = not on_cluster and config.is_small()

    def run(self, start_ray: Callable[[], None], make_page: MakePage | None = None) -> Summary:
        """Label what is left.

        Args:
            start_ray: called once there is something to do that takes more than this process.
            make_page: called at the end; its page is kept with the rows and with the run.

        Raises:
            UserError: a bad input, an output of something else or in use, too many failures, an MLflow
                experiment that cannot be logged to.
        """
        if self.config.export is not None:
            check_target(self.config.export)
        # First of all: a job that is refused leaves nothing, not the manifest of a bucket either.
        if not (self.small and self.config.is_one_file()) or self.config.tracking_uri:
            Tracker.check(self.config.tracking_uri, self.config.experiment)
        with OutputLock(self.out, job="tubelet label", options=self.options) as lock:
            prepared = prepare(self.config, lock.check)
            if prepared.plan.work:
                run = Run(self.config, prepared, make_page)
                views = prepared.plan.requests * math.prod(self.config.views)
                if self.small and views <= MOST_HERE:
                    summary = run.go_here()
                else:
                    start_ray()
                    summary = run.go()
            else:
                summary = summarise(prepared, Tally(), 0.0, None)
            if self.config.export is not None:
                export(prepared.sinks[0].files, self.config.export, formulas=self.config.export_formulas)
            return summary

    def describe(self) -> str:
        """What :meth:`run` would do; writes nothing.

        Raises:
            UserError: the source or a model is not there, or the output is of something else.
        """
        source, options = self.config.source, self.options
        if self.config.export is not None:
            check_target(self.config.export)
        models = LoadedModels.load(self.config.models, self.config.tracking_uri, options)
        several = len(models.bundles) > 1
        for name, bundle in zip(models.names, models.bundles, strict=True):
            out = storage.join(self.out, name) if several else self.out
            files = OutputFiles(out, options.for_writing())
            check_output(files, self.config.describe_output(bundle), new_version=self.config.new_version)
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
        self.driver = Driver(prepared.plan, prepared.root, prepared.sinks, self.error_rate)

    def go_here(self) -> Summary:
        """As :meth:`go`, in this process, without Ray."""
        self.driver.check_known_errors()
        decode = self._decode_job()
        self._run(None, lambda jobs: self.driver.run_here(decode, lambda: jobs, name="label"))
        return self.report.summary

    def go(self) -> Summary:
        """Label what is planned on the Ray that is connected, publish it, tell MLflow."""
        # Imports Ray Data, which takes seconds.
        from tubelet.inference.graph import check_reachable, resources_for

        prepared, config = self.prepared, self.config
        self.driver.check_known_errors()
        decode = self._decode_job()
        check_reachable(prepared.root, [shard.name for shard in prepared.plan.shards[:1]])
        with resources_for(
            decode,
            prepared.plan.requests,
            workers=config.workers,
            predictors=config.predictors,
            gpus=config.gpus,
            largest_pixels=prepared.plan.largest_pixels,
        ) as layout:

            def on_ray(jobs: Sequence[ModelJob]) -> None:
                self.driver.run(decode, ship(jobs, prepared.models.bundles), layout, name="label")

            self._run(layout, on_ray)
        return self.report.summary

    def _decode_job(self) -> DecodeJob:
        prepared, config = self.prepared, self.config
        return DecodeJob(prepared.models.specs, config.views, config.storage, config.limits.limits())

    def _run(self, layout: Layout | None, answer: Callable[[Sequence[ModelJob]], None]) -> None:
        prepared = self.prepared
        self.report = Report.start(self.config, prepared, layout)
        self.driver.on_rows = self.report.add
        try:
            self.driver.publish_known_errors(
                [
                    {"views": 0, "model": bundle.identity, "sampling": sampling}
                    for bundle, sampling in zip(prepared.models.bundles, prepared.sampling, strict=True)
                ]
            )
            answer(prepared.models.jobs(prepared.sampling, prepared.answers))
            self._after()
        except BaseException as error:
            self.report.stop(error)
            raise

    def _after(self) -> None:
        """Everything is published; what follows from it, and the summary."""
        if self.config.windows is not None:
            for sink in self.prepared.sinks:
                write_intervals(sink.files)
        self.driver.remove_plan()
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
            page = self._make_page(files.uri, files.path(PAGE))
            self.report.link_page(page.uri, storage.read_bytes(page.alone, files.options))
        except Exception:
            _log.warning("no review page could be made at %s", files.path(PAGE), exc_info=True)


def write_intervals(files: OutputFiles) -> None:
    """Merge the windows at the root of ``files`` into ``_intervals/intervals.parquet``, replaced whole."""
    numbers = part_numbers(files.names())
    table = intervals_table(files.read_table(part_name(number), INTERVAL_COLUMNS) for number in numbers)
    files.write(INTERVALS, parquet_bytes(table))

"""The labelling job: manifest minus what is published, through Ray Data, into the exactly-once sink."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tubelet import storage
from tubelet.corpus.manifest import is_manifest, read_manifest
from tubelet.error_rate import ErrorRate
from tubelet.inference.driver import Driver
from tubelet.inference.graph import Layout, check_reachable, resources_for
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

_log = logging.getLogger(__name__)

INTERVALS = "_intervals/intervals.parquet"
PAGE = "_review/page.html"


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
            UserError: a bad input, an output of something else or in use, too many failures, an MLflow
                experiment that cannot be logged to.
        """
        if self.config.export is not None:
            check_target(self.config.export)
        # First of all: a job that is refused leaves nothing, not the manifest of a bucket either.
        Tracker.check(self.config.tracking_uri, self.config.experiment)
        with OutputLock(self.out, job="tubelet label", options=self.options) as lock:
            prepared = prepare(self.config, lock.check)
            if prepared.plan.work:
                start_ray()
                summary = Run(self.config, prepared, make_page).go()
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
            files = OutputFiles(storage.join(self.out, name) if several else self.out, options)
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

    def go(self) -> Summary:
        """Label what is planned, publish it, tell MLflow."""
        prepared = self.prepared
        self.driver.check_known_errors()
        check_reachable(prepared.root, [shard.name for shard in prepared.plan.shards[:1]])
        config = self.config
        limits = config.limits.limits()
        decode = DecodeJob(prepared.models.specs, config.views, prepared.root.options, limits)
        with resources_for(
            decode,
            prepared.plan.requests,
            workers=config.workers,
            predictors=config.predictors,
            gpus=config.gpus,
            largest_pixels=prepared.plan.largest_pixels,
        ) as layout:
            self._run(decode, layout)
        return self.report.summary

    def _run(self, decode: DecodeJob, layout: Layout) -> None:
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
            models = ship(prepared.models.jobs(prepared.sampling, prepared.answers), prepared.models.bundles)
            self.driver.run(decode, models, layout, name="label")
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

"""The labelling job: manifest minus what is published, through Ray Data, into the exactly-once sink."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tubelet import storage
from tubelet.config import Settings, UserError
from tubelet.corpus.fingerprint import Fingerprint
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import ManifestSlices, is_manifest, read_manifest
from tubelet.error_rate import WINDOW, ErrorGuard, too_many_errors
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.output import OutputFiles, claim, parquet_bytes
from tubelet.inference.schema import ERROR, EmbeddingType, table_of
from tubelet.inference.shipping import Answers, LoadedModels, row_shape, ship
from tubelet.inference.sink import PredictionSink, part_name, part_numbers
from tubelet.labelling.export import check_target, export
from tubelet.labelling.plan import MAX_MODELS, Plan, Shard, encode_requests, make_plan, read_shard
from tubelet.labelling.report import Report, Summary, Tally, summarise
from tubelet.labelling.stream import Layout, cells, check_reachable, label_stream, lay_out
from tubelet.labelling.windows import INTERVAL_COLUMNS, Windows, intervals_table
from tubelet.labelling.workers import DecodeJob
from tubelet.progress import ProgressLine
from tubelet.review.page import ReviewConfig, review
from tubelet.storage import StorageOptions
from tubelet.storage.lock import OutputLock
from tubelet.storage.pinned import retry_if_changed

# What may have been the machine's or the store's fault: tried a second time at the end, before it becomes a
# row.
TRANSIENT = frozenset({"io_error", "crash", "timeout", "out_of_memory"})
# Columns of a manifest that labelling has no use for; the keyframes alone are as large as all it has.
_NOT_NEEDED = frozenset({"codec", "rotation", "fps", "vfr", "frames", "start_s", "keyframes_s", "indexed_at"})
INTERVALS = "_intervals/intervals.parquet"
PAGE = "_review/page.html"
_AGAIN = "_plan/again.parquet"


class LabelConfig(Settings):
    """What to label, by which models, and where the rows go."""

    source: str
    models: tuple[str, ...]
    out: str
    include: str | None = None
    topk: Annotated[int, Field(ge=1)] = 5
    scores: bool = False
    embeddings: EmbeddingType | None = None
    views: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 1)
    windows: Windows | None = None
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    retry_errors: bool = False
    new_version: bool = False
    workers: Annotated[int, Field(ge=1)] | None = None
    predictors: Annotated[int, Field(ge=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    export: str | None = None
    review_limit: Annotated[int, Field(ge=0)] = 100
    anonymous: bool = False
    tracking_uri: str | None = None
    experiment: str = "tubelet"

    @model_validator(mode="after")
    def _check(self) -> LabelConfig:
        if not 1 <= len(self.models) <= MAX_MODELS:
            raise ValueError(f"between 1 and {MAX_MODELS} models can be given in one job: set --model")
        return self


class LabelJob:
    """One run of ``tubelet label``."""

    def __init__(self, config: LabelConfig) -> None:
        self.config = config
        self.options = StorageOptions(anonymous=config.anonymous)
        self.out = storage.normalise_uri(config.out)

    def run(self, start_ray: Callable[[], None]) -> Summary:
        """Label what is left. ``start_ray`` is called once there is something to do.

        Raises:
            UserError: a bad input, an output of something else or in use, too many failures.
        """
        if self.config.export is not None:
            check_target(self.config.export)
        with OutputLock(self.out, job="tubelet label", options=self.options) as lock:
            prepared = self.prepare(lock.check)
            if prepared.plan.work:
                start_ray()
                summary = Run(self.config, prepared).go()
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

    def prepare(self, check_owner: Callable[[], None]) -> Prepared:
        """Everything before the first video: manifest, models, outputs, plan."""
        config = self.config
        models = LoadedModels.load(config.models, config.tracking_uri, self.options)
        source = self._manifest()
        answers = Answers(config.topk, config.scores, config.embeddings)
        root = OutputFiles(self.out, self.options, check_owner)
        sampling = [_sampling(models, number, config) for number in range(len(models.bundles))]
        outputs = [OutputFiles(uri, self.options, check_owner) for uri in self._sub_outputs(models)]

        def planned() -> Prepared:
            manifest = ManifestSlices.open(source, without=_NOT_NEEDED, options=self.options)
            found = self._checked(manifest)
            sinks = []
            for number, files in enumerate(outputs):
                bundle = models.bundles[number]
                claim(files, _description(config, bundle, sampling[number]), new_version=config.new_version)
                sinks.append(PredictionSink(files, row_shape(bundle, answers).schema()))
            published, windows = [sink.published for sink in sinks], config.windows
            plan = make_plan(
                manifest, published, root, "_plan", windows=windows, retry_errors=config.retry_errors
            )
            return Prepared(models, sampling, answers, root, sinks, plan, found)

        return retry_if_changed(planned)

    def _checked(self, manifest: ManifestSlices) -> str:
        """Go over all rows before the output is touched; returns their fingerprint."""
        found, rows = Fingerprint(), 0
        for table in manifest:
            rows += table.num_rows
            found.add(table)
        if not rows:
            raise UserError(f"{self.config.source} holds no videos: check the path and --include")
        return found.hexdigest()

    def _manifest(self) -> str:
        """Where the manifest lies; made first where the source is a bucket or a folder."""
        source = self.config.source
        if not is_manifest(source, self.options):
            made = storage.join(self.out, "_manifest")
            update = storage.exists(made, self.options)
            include = self.config.include
            index_corpus(
                IndexConfig(src=source, out=made, include=include, update=update, options=self.options)
            )
            source = made
        elif self.config.include is not None:
            raise UserError(
                "--include selects from a bucket or folder; a manifest already says what there is"
            )
        return source

    def _sub_outputs(self, models: LoadedModels) -> list[str]:
        if len(models.bundles) == 1:
            return [self.out]
        return [storage.join(self.out, name) for name in models.names]


@dataclass
class Prepared:
    """A job that is ready to start."""

    models: LoadedModels
    sampling: list[str]
    answers: Answers
    root: OutputFiles
    sinks: list[PredictionSink]
    plan: Plan
    fingerprint: str


class Run:
    """The part of the job that decodes."""

    def __init__(self, config: LabelConfig, prepared: Prepared) -> None:
        self.config, self.prepared = config, prepared
        self.guard = ErrorGuard(config.max_error_rate)
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
        layout = lay_out(
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
                    stream = label_stream(shards, prepared.root, decode, models, layout, clips=total)
                    for number, rows in cells(stream):
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
        fresh = rows.filter(pa.array(self._fresh(number, rows)))
        if fresh.num_rows:
            self.prepared.sinks[number].add(fresh)
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
                self.guard.see(code if status == ERROR else None, reason)
            if status == ERROR and code in TRANSIENT and not self._second:
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
        plan, limit = self.prepared.plan, self.config.max_error_rate
        known = plan.reasons.total()
        if plan.work >= WINDOW and known > limit * plan.work:
            raise too_many_errors(known, plan.work, plan.reasons, plan.examples, limit)

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
                    table = table_of(rows, sink.schema)
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
        self._make_page()
        tally = self.report.tallies[0]
        failures = {code: count for code, count in tally.reasons.items() if code != "partial"}
        self.guard.judge(tally.ok + tally.errors, failures, tally.examples)
        self.report.close()

    def _make_page(self) -> None:
        """The review page beside the rows, and in the run."""
        if not self.config.review_limit:
            return
        files, options = self.prepared.sinks[0].files, self.prepared.root.options
        made = ReviewConfig(
            predictions=files.uri,
            out=files.path(PAGE),
            limit=self.config.review_limit,
            workers=self.config.workers or os.cpu_count() or 1,
            anonymous=options.anonymous,
        )
        self.report.link_page(review(made).out, files.read(PAGE))


def write_intervals(files: OutputFiles) -> None:
    """Merge the windows at the root of ``files`` into ``_intervals/intervals.parquet``, replaced whole."""
    numbers = part_numbers(files.names())
    table = intervals_table(files.read_table(part_name(number), INTERVAL_COLUMNS) for number in numbers)
    files.write(INTERVALS, parquet_bytes(table))


def _sampling(models: LoadedModels, number: int, config: LabelConfig) -> str:
    """One word for the rows: what of a video the model saw."""
    clip = models.bundles[number].clip
    views = "x".join(map(str, config.views))
    window = "" if config.windows is None else f" {config.windows}"
    return f"{clip.sampling} of {clip.resize_side} views={views}{window}"


def _description(config: LabelConfig, bundle: ModelBundle, sampling: str) -> dict[str, Any]:
    """What an output holds; rows of another description never lie beside it."""
    return {
        "model": bundle.identity,
        "sampling": sampling,
        "topk": config.topk,
        "scores": config.scores,
        "embeddings": config.embeddings,
    }

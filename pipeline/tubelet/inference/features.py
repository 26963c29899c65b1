"""Features once: a frozen encoder over the frames of a manifest, kept in a table (see ``feature_table``)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import Field

from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.config import Settings, UserError
from tubelet.corpus.manifest import ManifestSlices
from tubelet.decode_limits import DecodeLimits
from tubelet.error_rate import ErrorRate, MaxErrorRate
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.driver import Driver
from tubelet.inference.feature_rows import FeatureJob
from tubelet.inference.feature_table import (
    FeatureSet,
    FeatureSpec,
    TableShape,
    encoder_hash,
    features_of,
    read_features,
)
from tubelet.inference.graph import Layout
from tubelet.inference.output import OutputFiles, check_or_init_output
from tubelet.inference.plan import Plan, make_plan
from tubelet.inference.shipping import ship
from tubelet.inference.sink import PredictionSink
from tubelet.inference.source import NOT_NEEDED, manifest_options
from tubelet.inference.table_run import VideoTally, make_rows
from tubelet.inference.workers import DecodeJob
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions
from tubelet.storage.errors import cannot_write
from tubelet.storage.lock import OutputLock
from tubelet.storage.pinned import retry_if_changed

__all__ = [
    "FeatureSet",
    "FeatureSettings",
    "FeatureSpec",
    "FeatureSummary",
    "FeaturesNotWritableError",
    "compute_features",
    "encoder_hash",
    "features_of",
    "read_features",
]

Select = Callable[[pa.Table], pa.Table]
"""Keeps some rows of a slice of the manifest."""


class FeaturesNotWritableError(UserError):
    """The place for features does not take them."""


class FeatureSettings(Settings):
    """How to make a table of features.

    Attributes:
        max_error_rate: share of the videos that may fail.
        retry_errors: try former errors again.
        workers: decode workers; None: one per CPU.
        predictors: apart from the decode workers; None: one per GPU.
        gpus: GPUs of each predictor; None: one where there are any.
        limits: what one video may cost.
    """

    max_error_rate: MaxErrorRate = 0.2
    retry_errors: bool = False
    workers: int | None = Field(default=None, ge=1)
    predictors: int | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    storage: StorageOptions = DEFAULT_OPTIONS
    limits: DecodeLimits = DecodeLimits()


@dataclass
class FeatureSummary:
    """How it ended; ``ok`` and ``errors`` count what readers now see of the manifest, all runs together.

    Attributes:
        embedded: videos (or segments) of this run.
        decode_s, predict_s: what these took, all workers together.
        to_retry: errors among them of the store or the machine, which the same command tries again.
    """

    objects: int
    ok: int
    errors: int
    already_done: int
    embedded: int = 0
    to_retry: int = 0
    seconds: float = 0.0
    decode_s: float = 0.0
    predict_s: float = 0.0
    out: str = ""
    reasons: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        return dataclasses.asdict(self)


def compute_features(
    manifest: str,
    bundle: ModelBundle,
    spec: FeatureSpec,
    out_uri: str | None = None,
    *,
    start_ray: Callable[[], None],
    select: Select | None = None,
    settings: FeatureSettings | None = None,
) -> FeatureSummary:
    """Make what is missing of the features of a manifest's videos, in ``out_uri/NAME`` (``spec.name``).

    A video whose content (key, segment, etag) is there is not opened; errors of the store or the machine are
    tried again.

    Args:
        manifest: its URI.
        bundle: a Model 2 or average that has the encoder of ``spec``.
        spec: see :meth:`FeatureSpec.of`.
        out_uri: the place of all features of this manifest; None: beside it (see :func:`features_of`).
        start_ray: called once there is something to do.
        select: keeps the rows of the manifest that features are wanted of; None: all.
        settings: how to work.

    Raises:
        FeaturesNotWritableError: the place does not take them; names the flag to set.
        UserError: a bad input, a table in use, too many failures.
    """
    shape = TableShape("frames", spec.width, spec.dtype, spec)
    job = FeatureJob(bundle.model, spec.encoder, spec.sampling, shape)
    table = FeatureTable(bundle, spec.clip, spec.clips, job, settings or FeatureSettings())
    return table.make(manifest, storage.join(out_uri or features_of(manifest), spec.name), start_ray, select)


@dataclass(frozen=True)
class FeatureTable:
    """Makes one table of features.

    Attributes:
        clip, clips: how clips are cut, and how many of each video.
        job: what is made of each.
        flag: of the command line, which sets the table's place.
        name: of the job, for messages.
    """

    bundle: ModelBundle
    clip: ClipSpec
    clips: int
    job: FeatureJob
    settings: FeatureSettings
    flag: str = "--features"
    name: str = "tubelet train"

    def make(
        self, manifest: str, out: str, start_ray: Callable[[], None], select: Select | None = None
    ) -> FeatureSummary:
        """Make what ``out`` lacks of the videos of ``manifest`` (see :func:`compute_features`)."""
        started_s, tally = time.monotonic(), VideoTally(("decode_s", "predict_s"), first="clip")
        options, again = manifest_options(manifest, self.settings.storage), self.settings.retry_errors
        with self._place(out) as files:
            sink = PredictionSink(files, self.job.shape.schema())

            def planned() -> Plan:
                slices = ManifestSlices.open(manifest, without=NOT_NEEDED, options=options)
                chosen = slices if select is None else map(select, slices)
                return make_plan(chosen, [sink.published], files, "_plan", retry_errors=again)

            plan = retry_if_changed(planned)
            if plan.work:
                self._run(plan, sink, start_ray, tally)
        done, failed = plan.already_done[0], plan.already_failed[0]
        return FeatureSummary(
            objects=plan.objects,
            ok=done - failed + tally.ok,
            errors=failed + tally.errors,
            already_done=done,
            embedded=tally.ok + tally.errors,
            to_retry=tally.to_retry,
            seconds=round(time.monotonic() - started_s, 3),
            decode_s=round(tally.sums["decode_s"], 3),
            predict_s=round(tally.sums["predict_s"], 3),
            out=storage.normalise_uri(out),
            reasons=dict(tally.reasons),
        )

    @contextmanager
    def _place(self, out: str) -> Iterator[OutputFiles]:
        """The table's files, its own while inside.

        Raises:
            FeaturesNotWritableError: nothing can be written there.
            UserError: another job writes there; it holds something else.
        """
        options, shape = self.settings.storage.for_writing(), self.job.shape
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(OutputLock(out, job=self.name, options=options))
                files = OutputFiles(out, options, lock.check, self.name)
                made = {"model": self.job.identity, "sampling": self.job.sampling}
                description = made | {"column": shape.column, "width": str(shape.width), "dtype": shape.dtype}
                check_or_init_output(files, description, new_version=None)
            except (UserError, OSError) as error:
                if not cannot_write(error):
                    raise
                raise FeaturesNotWritableError(
                    f"features cannot be kept at {out} ({error})\nset {self.flag} to a writable place"
                ) from error
            yield files

    def _run(
        self, plan: Plan, sink: PredictionSink, start_ray: Callable[[], None], tally: VideoTally
    ) -> None:
        settings, job = self.settings, self.job

        def run(driver: Driver, layout: Layout) -> None:
            driver.run(decode, ship([job], [self.bundle]), layout, name="embed")

        decode = DecodeJob((self.clip,), (self.clips, 1), settings.storage, settings.limits.limits())
        make_rows(
            plan,
            sink,
            ErrorRate(
                settings.max_error_rate, "What is done is published: mend the cause and set --retry-errors"
            ),
            tally,
            known={"clip": 0, "model": job.identity, "sampling": job.sampling},
            decode=decode,
            start_ray=start_ray,
            run=run,
            workers=settings.workers,
            predictors=settings.predictors,
            gpus=settings.gpus,
        )

"""Everything of a labelling job before the first video: manifest, models, outputs, plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.manifest import ManifestSlices
from tubelet.corpus.probing import Prober, default_workers
from tubelet.corpus.versions import pinned_uri
from tubelet.inference.output import OutputFiles, check_or_init_output
from tubelet.inference.plan import Plan, make_plan
from tubelet.inference.second_look import SecondLook
from tubelet.inference.shipping import Answers, LoadedModels, row_shape
from tubelet.inference.sink import PredictionSink
from tubelet.inference.source import NOT_NEEDED, fingerprint_of, manifest_of, manifest_options
from tubelet.labelling.config import LabelConfig
from tubelet.storage.pinned import retry_if_changed
from tubelet.video import Status


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
    manifest: str
    """The version of it that is labelled, which can be read again."""


def prepare(config: LabelConfig, check_owner: Callable[[], None]) -> Prepared:
    """Load the models, open or make the manifest, check the outputs, write the plan.

    Args:
        check_owner: raises when this job is no longer the output's owner.

    Raises:
        UserError: a bad input, or an output of something else.
    """
    options, out = config.storage.for_writing(), storage.normalise_uri(config.out)
    models = LoadedModels.load(config.models, config.tracking_uri, config.storage)
    source = manifest_of(config, out)
    answers = Answers(config.topk, config.scores, config.embeddings)
    root = OutputFiles(out, options, check_owner)
    outputs = [root]
    if len(models.bundles) > 1:
        outputs = [OutputFiles(storage.join(out, name), options, check_owner) for name in models.names]
    sampling = [config.sampling(bundle) for bundle in models.bundles]

    def planned() -> Prepared:
        readable = manifest_options(source, config.storage)
        pinned = pinned_uri(source, readable)
        manifest = ManifestSlices.open(pinned, without=NOT_NEEDED, options=readable)
        found = fingerprint_of(manifest, config.source)
        if config.windows is not None:
            refuse_segments(manifest)
        sinks = []
        for bundle, files in zip(models.bundles, outputs, strict=True):
            check_or_init_output(files, config.describe_output(bundle), new_version=config.new_version)
            sinks.append(PredictionSink(files, row_shape(bundle, answers).schema()))
        published, windows = [sink.published for sink in sinks], config.windows
        with Prober(config.workers or default_workers(), config.storage, config.limits.limits()) as prober:
            plan = make_plan(
                manifest,
                published,
                root,
                "_plan",
                windows=windows,
                look=SecondLook(prober),
                retry_errors=config.retry_errors,
            )
        return Prepared(models, sampling, answers, root, sinks, plan, found, pinned)

    return retry_if_changed(planned)


def refuse_segments(manifest: Iterable[pa.Table]) -> None:
    """Segments are the windows of their video.

    Raises:
        UserError: there are some.
    """
    for rows in manifest:
        clips = pc.or_(pc.is_valid(rows["clip_start_s"]), pc.is_valid(rows["clip_end_s"]))
        live = pc.not_equal(rows["status"], str(Status.GONE))
        if pc.any(pc.and_(live, pc.or_(clips, pc.not_equal(rows["segment"], 0)))).as_py():
            raise UserError(
                "the manifest has segments, and each gets a row of its own\n"
                "leave --window out, or label a manifest without segments"
            )

"""Everything of a labelling job before the first video: manifest, models, outputs, plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.fingerprint import Fingerprint
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import ManifestSlices, is_manifest
from tubelet.inference.output import OutputFiles, check_or_init_output
from tubelet.inference.shipping import Answers, LoadedModels, row_shape
from tubelet.inference.sink import PredictionSink
from tubelet.labelling.config import LabelConfig
from tubelet.labelling.plan import Plan, make_plan
from tubelet.storage import StorageOptions
from tubelet.storage.pinned import retry_if_changed

# Columns of a manifest that labelling has no use for; the keyframes alone are as large as all it has.
_NOT_NEEDED = frozenset({"codec", "rotation", "fps", "vfr", "frames", "start_s", "keyframes_s", "indexed_at"})


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


def prepare(config: LabelConfig, check_owner: Callable[[], None]) -> Prepared:
    """Load the models, open or make the manifest, check the outputs, write the plan.

    Args:
        check_owner: raises when this job is no longer the output's owner.

    Raises:
        UserError: a bad input, or an output of something else.
    """
    options, out = config.storage, storage.normalise_uri(config.out)
    models = LoadedModels.load(config.models, config.tracking_uri, options)
    source = _manifest(config, out, options)
    answers = Answers(config.topk, config.scores, config.embeddings)
    root = OutputFiles(out, options, check_owner)
    outputs = [root]
    if len(models.bundles) > 1:
        outputs = [OutputFiles(storage.join(out, name), options, check_owner) for name in models.names]
    sampling = [config.sampling(bundle) for bundle in models.bundles]

    def planned() -> Prepared:
        manifest = ManifestSlices.open(source, without=_NOT_NEEDED, options=options)
        found = _checked(manifest, config.source)
        sinks = []
        for bundle, files in zip(models.bundles, outputs, strict=True):
            check_or_init_output(files, config.describe_output(bundle), new_version=config.new_version)
            sinks.append(PredictionSink(files, row_shape(bundle, answers).schema()))
        published, windows = [sink.published for sink in sinks], config.windows
        plan = make_plan(
            manifest, published, root, "_plan", windows=windows, retry_errors=config.retry_errors
        )
        return Prepared(models, sampling, answers, root, sinks, plan, found)

    return retry_if_changed(planned)


def _checked(manifest: ManifestSlices, source: str) -> str:
    """Go over all rows before the output is touched; returns their fingerprint."""
    found, rows = Fingerprint(), 0
    for table in manifest:
        rows += table.num_rows
        found.add(table)
    if not rows:
        raise UserError(f"{source} holds no videos: check the path and --include")
    return found.hexdigest()


def _manifest(config: LabelConfig, out: str, options: StorageOptions) -> str:
    """Where the manifest lies; made first where the source is a bucket or a folder."""
    source = config.source
    if not is_manifest(source, options):
        made = storage.join(out, "_manifest")
        update = storage.exists(made, options)
        index_corpus(
            IndexConfig(
                src=source,
                out=made,
                include=config.include,
                update=update,
                retry_errors=config.retry_errors,
                max_error_rate=config.max_error_rate,
                options=options,
            )
        )
        source = made
    elif config.include is not None:
        raise UserError("--include selects from a bucket or folder; a manifest already says what there is")
    return source

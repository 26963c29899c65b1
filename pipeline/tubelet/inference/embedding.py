"""The job behind ``tubelet embed``: a table of what a model makes of each video, without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from tubelet import storage
from tubelet.config import Option, Settings
from tubelet.corpus.manifest import ManifestSlices, is_manifest, read_manifest
from tubelet.corpus.versions import pinned_uri
from tubelet.decode_limits import DecodeLimits
from tubelet.error_rate import MaxErrorRate
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.encoders import ClipChoice, load_encoder
from tubelet.inference.feature_rows import FeatureJob
from tubelet.inference.feature_table import FeatureSpec, TableShape
from tubelet.inference.features import FeatureSettings, FeatureSummary, FeatureTable
from tubelet.inference.schema import EmbeddingType
from tubelet.inference.source import NOT_NEEDED, fingerprint_of, manifest_of, manifest_options
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions


class EmbedConfig(Settings):
    """What to embed, by which model, and where the rows go."""

    source: Annotated[str, Option(argument=True, metavar="SRC|MANIFEST")]
    """Bucket or folder, or its manifest."""
    model: Annotated[str, Option()]
    """MODEL, or an image ViT: timm:NAME, hf:NAME, a folder or a file of weights."""
    out: Annotated[str, Option()]
    """Where the rows go (a Parquet dataset)."""
    include: Annotated[str | None, Option(metavar="GLOB")] = None
    """Only paths that match this glob."""
    clips: Annotated[int, Option(), Field(ge=1)] = 1
    """Clips of each video, spread over it; a row for each."""
    per_frame: Annotated[bool, Option()] = False
    """Keep class token and mean patch token of each frame, in place of one embedding per clip."""
    type: Annotated[EmbeddingType, Option()] = "float32"
    """Type of the values."""
    frames: Annotated[int | None, Option(), Field(ge=1)] = None
    """Of an image model: frames of a clip (default: 8)."""
    stride: Annotated[int | None, Option(), Field(ge=1)] = None
    """Of an image model: frames between two of a clip (default: spread over the video)."""
    size: Annotated[int | None, Option(), Field(ge=1)] = None
    """Of an image model: pixels of the square it sees (default: as its source says, or 224)."""
    max_error_rate: Annotated[MaxErrorRate, Option()] = 0.2
    """End when more of the last thousand failed."""
    retry_errors: Annotated[bool, Option()] = False
    """Try former errors again."""
    workers: Annotated[int | None, Option(), Field(ge=1)] = None
    """Decode workers (default: one per CPU)."""
    predictors: Annotated[int | None, Option(), Field(ge=0)] = None
    """Predictors apart from the decode workers (default: one per GPU)."""
    gpus: Annotated[float | None, Option(), Field(ge=0)] = None
    """GPUs of each predictor, such as 0.5; 0 for none."""
    tracking_uri: Annotated[str | None, Option(envvar="MLFLOW_TRACKING_URI")] = None
    """MLflow server that models:/ and runs:/ are of (default: sqlite:///mlflow.db)."""
    limits: DecodeLimits = DecodeLimits()
    """What one video may cost."""
    storage: StorageOptions = DEFAULT_OPTIONS
    """How to reach the stores."""

    def settings(self) -> FeatureSettings:
        """How the table is made."""
        given = {name: getattr(self, name) for name in FeatureSettings.model_fields if hasattr(self, name)}
        return FeatureSettings(**given)


class EmbedJob:
    """One run of ``tubelet embed``.

    Attributes:
        notes: what was assumed of the model.

    Raises:
        UserError: the model cannot be read, or has no features of single frames.
    """

    def __init__(self, config: EmbedConfig) -> None:
        self.config = config
        choice = ClipChoice(config.frames, config.stride, config.size)
        self.bundle, self.notes = load_encoder(config.model, config.tracking_uri, config.storage, choice)
        self._table = _table(config, self.bundle)

    def run(self, start_ray: Callable[[], None]) -> FeatureSummary:
        """Embed what is left.

        Args:
            start_ray: called once there is something to do.

        Raises:
            UserError: a bad input, an output of something else or in use, too many failures.
        """
        config = self.config
        manifest = manifest_of(config, config.out)
        options = manifest_options(manifest, config.storage)
        manifest = pinned_uri(manifest, options)
        fingerprint_of(ManifestSlices.open(manifest, without=NOT_NEEDED, options=options), config.source)
        return self._table.make(manifest, config.out, start_ray)

    def describe(self) -> str:
        """What :meth:`run` would do; writes nothing.

        Raises:
            UserError: the source is not there.
        """
        config, options = self.config, self.config.storage
        how = f"with {self.bundle.identity}, clips {self._table.job.sampling}, into {config.out}"
        if not is_manifest(config.source, options):
            count = sum(1 for _ in storage.list_objects(config.source, options, config.include))
            return f"would index {count} objects of {config.source}, and embed {how}"
        manifest = read_manifest(config.source, ["key", "etag", "status"], options=options)
        return f"would embed {manifest.num_rows} objects of {config.source} {how}"


def _table(config: EmbedConfig, bundle: ModelBundle) -> FeatureTable:
    spec = FeatureSpec.of(bundle.model, bundle.clip, clips=config.clips) if config.per_frame else None
    if spec is not None:
        spec = spec.model_copy(update={"dtype": config.type})
        identity, shape = spec.encoder, TableShape("frames", spec.width, config.type, spec)
    else:
        width = bundle.model.config.pooled_width
        identity, shape = bundle.identity, TableShape("embedding", width, config.type)
    sampling = bundle.clip.sampling_of((config.clips, 1))
    job = FeatureJob(bundle.model, identity, sampling, shape)
    return FeatureTable(
        bundle, bundle.clip, config.clips, job, config.settings(), flag="--out", name="tubelet embed"
    )

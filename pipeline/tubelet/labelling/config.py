"""The settings of a labelling job, and the words that name what it makes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from tubelet import storage
from tubelet.clips import Views
from tubelet.config import Option, Settings
from tubelet.corpus.manifest import is_manifest
from tubelet.decode_limits import DecodeLimits
from tubelet.error_rate import MaxErrorRate
from tubelet.inference.output import DESCRIPTION
from tubelet.inference.schema import MAX_MODELS, EmbeddingType
from tubelet.inference.windows import Windows
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions

if TYPE_CHECKING:
    from tubelet.inference.bundle import ModelBundle  # imports torch, for which --help need not wait

# Videos in a folder that one process labels while Ray would start: each may take seconds of a large model.
MOST_FILES = 4


class LabelConfig(Settings):
    """What to label, by which models, and where the rows go."""

    source: Annotated[str, Option(argument=True, metavar="SRC|MANIFEST|FILE")]
    """Bucket or folder, its manifest, or one video."""
    models: Annotated[tuple[str, ...], Option(flag="--model")]
    """MODEL to label with; may be repeated."""
    out: Annotated[str, Option()]
    """Where the predictions go (a Parquet dataset)."""
    include: Annotated[str | None, Option(metavar="GLOB")] = None
    """Only paths that match this glob."""
    topk: Annotated[int, Option(), Field(ge=1)] = 5
    """Labels a row holds, the best first."""
    scores: Annotated[bool, Option()] = False
    """Keep the scores of all classes."""
    embeddings: EmbeddingType | None = None
    """Keep the pooled features, as this type."""
    views: Annotated[Views, Option(metavar="TIMExSPACE")] = (1, 1)
    """Views in time x space, their logits averaged."""
    windows: Windows | None = None
    """Rows for windows of each video."""
    max_error_rate: Annotated[MaxErrorRate, Option()] = 0.2
    """End when more of the last thousand failed."""
    retry_errors: Annotated[bool, Option()] = False
    """Try former errors again."""
    new_version: Annotated[bool, Option()] = False
    """Move rows of another model or sampling under _versions/."""
    export: Annotated[str | None, Option(metavar="FILE")] = None
    """Also write all rows to this .jsonl or .csv file, or .windows.csv, or .label-studio.json."""
    export_formulas: Annotated[bool, Option()] = False
    """Leave text that a spreadsheet would run as a formula as it is (default: an apostrophe before it)."""
    review_limit: Annotated[int, Option(), Field(ge=0)] = 100
    """Most videos on the review page that is made at the end; 0 for no page."""
    workers: Annotated[int | None, Option(), Field(ge=1)] = None
    """Decode workers (default: one per CPU)."""
    predictors: Annotated[int | None, Option(), Field(ge=0)] = None
    """Predictors apart from the decode workers (default: one per GPU)."""
    gpus: Annotated[float | None, Option(), Field(ge=0)] = None
    """GPUs of each predictor, such as 0.5; 0 for none."""
    name: Annotated[str | None, Option()] = None
    """Of the run in MLflow (default: what is labelled, and the date)."""
    experiment: Annotated[str, Option()] = "tubelet"
    """MLflow experiment."""
    tracking_uri: Annotated[str | None, Option(envvar="MLFLOW_TRACKING_URI")] = None
    """MLflow server (default: sqlite:///mlflow.db)."""
    limits: DecodeLimits = DecodeLimits()
    """What one video may cost."""
    storage: StorageOptions = DEFAULT_OPTIONS
    """How to reach the stores."""

    @model_validator(mode="after")
    def _check(self) -> LabelConfig:
        if not 1 <= len(self.models) <= MAX_MODELS:
            raise ValueError(f"between 1 and {MAX_MODELS} models can be given in one job: set --model")
        return self

    def is_one_file(self) -> bool:
        """Whether the source is one video on this machine."""
        source = storage.normalise_uri(self.source)
        return not storage.is_remote(source) and Path(source).is_file() and not is_manifest(source)

    def is_small(self) -> bool:
        """Whether this process may have labelled the source in less time than Ray takes to start.

        So it may with one video of this machine, or a folder of at most :data:`MOST_FILES`. Whoever sets how
        many workers there are, or which GPUs they take, wants them.
        """
        if self.workers is not None or self.predictors is not None or self.gpus is not None:
            return False
        if self.is_one_file():
            return True
        source = storage.normalise_uri(self.source)
        if storage.is_remote(source) or not Path(source).is_dir() or is_manifest(source):
            return False
        # Of all that lies there, not of what --include selects: a look at few files of many is quick.
        found = islice(storage.list_objects(source, self.storage), MOST_FILES + 1)
        return len(list(found)) <= MOST_FILES

    def is_certain_of_ray(self) -> bool:
        """Whether there is work for Ray, for all that can be told at once: nothing is missing or done."""
        if len(self.models) > 1:
            return False
        here = (name for name in (self.source, self.models[0]) if ":" not in name)
        if not all(Path(name).exists() for name in here):
            return False
        return not storage.exists(storage.join(self.out, DESCRIPTION), self.storage) and not self.is_small()

    def sampling(self, bundle: ModelBundle) -> str:
        """One word for the rows: what of a video the model saw."""
        window = "" if self.windows is None else f" {self.windows}"
        return f"{bundle.clip.sampling_of(self.views)}{window}"

    def describe_output(self, bundle: ModelBundle) -> dict[str, Any]:
        """What an output holds; rows of another description never lie beside it."""
        return {
            "model": bundle.identity,
            "sampling": self.sampling(bundle),
            "topk": self.topk,
            "scores": self.scores,
            "embeddings": self.embeddings,
        }

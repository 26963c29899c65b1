"""The settings of a labelling job, and the words that name what it makes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from tubelet.clips import Views
from tubelet.config import Settings
from tubelet.error_rate import MaxErrorRate
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.schema import EmbeddingType
from tubelet.labelling.plan import MAX_MODELS
from tubelet.labelling.windows import Windows
from tubelet.storage import StorageOptions


class LabelConfig(Settings):
    """What to label, by which models, and where the rows go."""

    source: str
    models: tuple[str, ...]
    out: str
    include: str | None = None
    topk: Annotated[int, Field(ge=1)] = 5
    scores: bool = False
    embeddings: EmbeddingType | None = None
    views: Views = (1, 1)
    windows: Windows | None = None
    max_error_rate: MaxErrorRate = 0.2
    retry_errors: bool = False
    new_version: bool = False
    workers: Annotated[int, Field(ge=1)] | None = None
    predictors: Annotated[int, Field(ge=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    export: str | None = None
    review_limit: Annotated[int, Field(ge=0)] = 100
    anonymous: bool = False
    single_writer: bool = False
    break_lock: bool = False
    tracking_uri: str | None = None
    experiment: str = "tubelet"

    @property
    def storage(self) -> StorageOptions:
        """How stores are reached and outputs shared."""
        return StorageOptions(
            anonymous=self.anonymous, single_writer=self.single_writer, break_lock=self.break_lock
        )

    @model_validator(mode="after")
    def _check(self) -> LabelConfig:
        if not 1 <= len(self.models) <= MAX_MODELS:
            raise ValueError(f"between 1 and {MAX_MODELS} models can be given in one job: set --model")
        return self

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

"""The models of a job: loaded once by the driver, shipped to the workers as bytes of safetensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.predictor import Job, ModelJob
from tubelet.inference.schema import EmbeddingType, RowShape
from tubelet.inference.shipped import ShippedModels
from tubelet.storage import StorageOptions
from tubelet.vivit import model_to_bytes


@dataclass(frozen=True)
class Answers:
    """What a row tells of a model's answer."""

    topk: int = 5
    scores: bool = False
    embedding: EmbeddingType | None = None
    logits: bool = False


@dataclass(frozen=True)
class LoadedModels:
    """The models of a job in the order of their numbers.

    Attributes:
        names: of their sub-outputs, unique, where there are several.
        specs: the distinct clips that they take.
    """

    bundles: tuple[ModelBundle, ...]
    names: tuple[str, ...]
    specs: tuple[ClipSpec, ...]

    @classmethod
    def load(cls, uris: Sequence[str], tracking_uri: str | None, options: StorageOptions) -> LoadedModels:
        """Load each MODEL of ``uris``.

        Raises:
            UserError: none given, one given twice, or one that cannot be loaded.
        """
        if not uris:
            raise UserError("no model was given: set --model to a train --out folder or models:/NAME@ALIAS")
        if len(set(uris)) < len(uris):
            raise UserError("the same --model was given twice")
        bundles = tuple(ModelBundle.load(uri, tracking_uri, options) for uri in uris)
        specs = tuple(dict.fromkeys(bundle.clip for bundle in bundles))
        return cls(bundles, _names(uris), specs)

    def jobs(self, sampling: Sequence[str], answers: Answers) -> list[ModelJob]:
        """What the workers need of each; ``sampling`` is the word of each for its rows."""
        return [
            model_job(bundle, sampling[number], answers, spec=self.specs.index(bundle.clip))
            for number, bundle in enumerate(self.bundles)
        ]


def model_job(
    bundle: ModelBundle, sampling: str, answers: Answers, *, spec: int = 0, most_clips: int | None = None
) -> ModelJob:
    """What a worker needs of one model."""
    return ModelJob(
        model=bundle.model,
        identity=bundle.identity,
        sampling=sampling,
        spec=spec,
        labels=bundle.labels,
        shape=row_shape(bundle, answers),
        topk=answers.topk,
        multilabel=bundle.multilabel,
        most_clips=most_clips,
    )


def row_shape(bundle: ModelBundle, answers: Answers) -> RowShape:
    """The columns of a model's rows."""
    heads = {head: len(names) for head, names in bundle.labels.items()}
    return RowShape(
        heads, answers.scores, answers.embedding, bundle.model.config.pooled_width, answers.logits
    )


def ship(jobs: Sequence[Job], bundles: Sequence[ModelBundle]) -> Callable[[], list[Job]]:
    """A picklable function that makes ``jobs`` in a worker.

    The object store has the weights once per node.
    """
    import ray

    return ShippedModels(
        [job.without_model() for job in jobs],
        [ray.put(np.frombuffer(model_to_bytes(bundle.model), np.uint8)) for bundle in bundles],
    )


def _names(uris: Sequence[str]) -> tuple[str, ...]:
    """A short folder name of each, unique."""
    found: list[str] = []
    for uri in uris:
        parts = [part for part in re.split(r"[:/@]+", uri.removesuffix("/model.safetensors")) if part]
        name = re.sub(
            r"[^A-Za-z0-9.-]+", "-", "-".join(parts[-2:] if uri.startswith("models:") else parts[-1:])
        )
        name = name.strip("-.") or "model"
        found.append(name if name not in found else f"{name}-{len(found) + 1}")
    return tuple(found)

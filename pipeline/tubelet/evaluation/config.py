"""The settings of an evaluation job; light to import, so that the command line can read its options."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tubelet.clips import Views
from tubelet.config import Option, Settings
from tubelet.decode_limits import DecodeLimits
from tubelet.error_rate import MaxErrorRate
from tubelet.evaluation.ablation import Ablation


class EvaluateConfig(Settings):
    """What to evaluate, how, and where the scores go."""

    model: Annotated[str, Option()]
    """train --out, models:/NAME@ALIAS or runs:/ID."""
    manifest: Annotated[str, Option()]
    """Manifest made by `tubelet index`."""
    split: Annotated[str, Option()] = "test"
    """Which videos."""
    views: Annotated[Views, Option(metavar="TIMExSPACE")] = (4, 3)
    """Temporal clips x spatial crops."""
    out: Annotated[str | None, Option()] = None
    """Folder for tables and figures."""
    batch: Annotated[int, Option(ranged=True), Field(ge=1)] = 8
    """Views in one forward pass."""
    workers: Annotated[int | None, Option(ranged=True), Field(ge=1)] = None
    """Decode workers."""
    max_error_rate: Annotated[MaxErrorRate, Option()] = 0.2
    """Share of videos that may fail."""
    seed: Annotated[int, Option()] = 0
    """Of the bootstrap."""
    ablate: Annotated[Ablation, Option()] = "none"
    """Frames in a random order, or one only."""
    learning_curve: Annotated[bool, Option()] = False
    """What fewer and twice as many labels would give, from features of the training split."""
    features: Annotated[str | None, Option()] = None
    """Where these are kept (default: beside the manifest)."""
    name: Annotated[str | None, Option()] = None
    """Of the run in MLflow (default: what is evaluated, and the date)."""
    experiment: Annotated[str, Option()] = "tubelet"
    """MLflow experiment."""
    tracking_uri: Annotated[str | None, Option(envvar="MLFLOW_TRACKING_URI")] = None
    """MLflow server (default: sqlite:///mlflow.db)."""
    limits: DecodeLimits = DecodeLimits()
    """What one video may cost."""
    anonymous: Annotated[bool, Option()] = False
    """Read public buckets without credentials."""

"""What a rank is given to train with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from tubelet.clips import ClipSpec
from tubelet.training.examples import Targets
from tubelet.training.feed import FeedConfig
from tubelet.training.plan import Validation
from tubelet.training.recipe import Recipe


@dataclass(frozen=True)
class TrainJob:
    """All that a rank needs to know; small, as it travels to every rank.

    ``targets``, of training and validation videos, lie in the object store. ``initial`` is the folder of
    the model that step 0 starts from. ``metadata`` goes into every model file. ``watch_nodes``: nodes may be
    taken away, with notice.
    """

    recipe: Recipe
    spec: ClipSpec
    labels: dict[str, list[str]]
    targets: ray.ObjectRef[tuple[Targets, Targets | None]]
    train_rows: int
    validation: Validation | None
    feed: FeedConfig
    initial: str
    events: Any
    metadata: dict[str, Any]
    watch_nodes: bool = False

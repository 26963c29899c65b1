"""Models on their way: what a worker is given of them, and unpacks once it has imported torch."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ray

    from tubelet.inference.predictor import Job


class ShippedModels:
    """Makes the jobs of models in a worker; to get it there imports nothing.

    Args:
        jobs: without their models.
        weights: of each, in the object store, as safetensors.
    """

    def __init__(self, jobs: Sequence[Job], weights: Sequence[ray.ObjectRef[object]]) -> None:
        self._jobs, self._weights = pickle.dumps(list(jobs)), list(weights)

    def __call__(self) -> list[Job]:
        """The jobs with their models."""
        import ray

        from tubelet.vivit import model_from_bytes

        jobs: list[Job] = pickle.loads(self._jobs)  # noqa: S301 - what this class packed
        return [
            # Not by way of a file: a worker that is stopped here would leave it.
            job.with_model(model_from_bytes(ray.get(ref).tobytes()))
            for job, ref in zip(jobs, self._weights, strict=True)
        ]

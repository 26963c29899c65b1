"""The model as MLflow loads it: a table of videos in, a table of labels out.

This file is logged as the model's code (models from code), next to the ``tubelet`` package and a folder with
``model.safetensors``; nothing is pickled.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


class VideoClassifier(PythonModel):  # type: ignore[misc]  # mlflow is not followed by the type checker
    """Labels the videos of a column ``uri``: local paths or ``s3://``, ``gs://`` URIs."""

    def load_context(self, context: Any) -> None:
        """Read weights, label names and preprocessing from the one file."""
        try:
            from tubelet.inference.bundle import ModelBundle
        except ImportError as error:
            import tubelet

            raise ImportError(
                f"this model brings its own tubelet, and another was imported before ({tubelet.__file__}) "
                f"that does not fit: load the model first, or in a process of its own ({error})"
            ) from error
        self._bundle = ModelBundle.load(context.artifacts["weights"])
        self._decoders: dict[str, Any] = {}

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row a video; one that cannot be read has its reason under ``error``. Params: views, topk."""
        params = params or {}
        uris = [str(uri) for uri in model_input["uri"]]
        batch = {name: np.array(uris, object) for name in ("key", "uri")}
        batch |= {name: np.array([None] * len(uris), object) for name in ("etag", "size")}
        decoded = self._decoder(str(params.get("views", "1x1")))(batch)
        logits = self._bundle.view_logits(decoded["tubelets"])
        head, scores = next(iter(self._bundle.probabilities(logits).items()))
        names = self._bundle.labels[head]
        count = min(int(params.get("topk", 5)), len(names))
        rows = [
            _labelled(uri, names, scores[i], count, error) if code in ("", "partial") else _failed(uri, error)
            for i, (uri, code, error) in enumerate(
                zip(uris, decoded["error_code"], decoded["error"], strict=True)
            )
        ]
        table: pd.DataFrame = pd.DataFrame(rows)
        return table

    def _decoder(self, views: str) -> Any:
        from tubelet.clips import ClipDecoder

        if views not in self._decoders:
            temporal, _, spatial = views.partition("x")
            self._decoders[views] = ClipDecoder(self._bundle.clip, views=(int(temporal), int(spatial or 1)))
        return self._decoders[views]


def _failed(uri: str, error: str) -> dict[str, Any]:
    empty: dict[str, Any] = {"label": None, "score": None, "topk_labels": [], "topk_scores": []}
    return {"uri": uri, **empty, "error": error}


def _labelled(uri: str, names: list[str], scores: Any, count: int, error: str) -> dict[str, Any]:
    best = np.argsort(-scores, kind="stable")[:count]
    return {
        "uri": uri,
        "label": names[best[0]],
        "score": float(scores[best[0]]),
        "topk_labels": [names[i] for i in best],
        "topk_scores": [float(scores[i]) for i in best],
        "error": error or None,
    }


mlflow.models.set_model(VideoClassifier())

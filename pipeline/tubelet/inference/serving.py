"""The model as MLflow loads it: a table of videos in, a table of labels out.

This file is logged as the model's code (models from code), next to the ``tubelet`` package and a folder with
``model.safetensors``; nothing is pickled.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

# The logged signature's outputs: columns of the rows that `tubelet label` writes.
_COLUMNS = ("label", "score", "topk_labels", "topk_scores", "error")


class VideoClassifier(PythonModel):  # type: ignore[misc]  # mlflow is not followed by the type checker
    """Labels the videos of a column ``uri``: local paths or ``s3://``, ``gs://`` URIs."""

    def load_context(self, context: Any) -> None:
        """Read weights, label names and preprocessing from the one file."""
        try:
            from tubelet.inference.bundle import ModelBundle
            from tubelet.inference.local import LocalModel
        except ImportError as error:
            import tubelet

            raise ImportError(
                f"this model brings its own tubelet, and another was imported before ({tubelet.__file__}) "
                f"that does not fit: load the model first, or in a process of its own ({error})"
            ) from error
        self._model = LocalModel(ModelBundle.load(context.artifacts["weights"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per video; one that cannot be read has its reason under ``error``.

        Params: ``views``, ``topk``.
        """
        params = params or {}
        uris = [str(uri) for uri in model_input["uri"]]
        found = self._model.predict(
            uris, views=str(params.get("views", "1x1")), topk=int(params.get("topk", 5))
        )
        rows = [{"uri": uri} | _answer(row) for uri, row in zip(uris, found, strict=True)]
        table: pd.DataFrame = pd.DataFrame(rows)
        return table


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """Lists are empty, not null, where there is no answer: the signature knows no null list."""
    return {name: [] if row[name] is None and name.startswith("topk") else row[name] for name in _COLUMNS}


mlflow.models.set_model(VideoClassifier())

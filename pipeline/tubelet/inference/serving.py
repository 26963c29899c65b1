"""The model as MLflow loads it: videos in, a table of labels out.

This file is logged as the model's code (models from code), next to the ``tubelet`` package and a folder with
``model.safetensors``; nothing is pickled.
"""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

# The logged signature's outputs: columns of the rows that `tubelet label` writes.
_COLUMNS = ("uri", "label", "score", "topk_labels", "topk_scores", "error")
# A column of this name, and text that begins so, are the bytes of videos in base64.
_BASE64_COLUMN, _BASE64_TEXT = "b64", "data:"

_log = logging.getLogger("tubelet.serving")


class VideoClassifier(PythonModel):  # type: ignore[misc]  # mlflow is not followed by the type checker
    """Labels videos: local paths, ``s3://`` and ``gs://`` URIs, or bytes."""

    # Else MLflow asks on the terminal for a type of the input wherever a model is logged; it would take that
    # type for the shape of requests, which have several.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Read weights, label names and preprocessing from the one file."""
        import tubelet

        used = Path(tubelet.__file__).parent
        if Path(context.artifacts["weights"]).resolve().parents[1] not in used.resolve().parents:
            _log.warning("the tubelet imported before is used, and not the model's own: %s", used)
        try:
            from tubelet.inference.bundle import ModelBundle
            from tubelet.inference.local import LocalModel
        except ImportError as error:
            raise ImportError(
                f"this model brings its own tubelet, and another was imported before ({tubelet.__file__}) "
                f"that does not fit: load the model first, or in a process of its own ({error})"
            ) from error
        self._model = LocalModel(ModelBundle.load(context.artifacts["weights"]))

    # Without a type for the input: MLflow would take it for the shape of requests.
    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        """One row per video; one that cannot be read has its reason under ``error``.

        Args:
            context: MLflow's, not used.
            model_input: a path or URI, bytes, a list or a series of them, or a table whose first column they
                are. In requests, bytes are text that begins with ``data:``, or a column ``b64``, in base64.
            params: ``views``, such as ``4x3``; ``topk``.

        Raises:
            MlflowException: a parameter that is none.
        """
        params = params or {}
        videos, errors = _videos(model_input)
        try:
            found = self._model.predict(
                [video for video in videos if video is not None],
                views=str(params.get("views", "1x1")),
                topk=_topk(params),
            )
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        answers = iter(found)
        rows = [
            _failed(errors[i]) if video is None else _answer(video, next(answers))
            for i, video in enumerate(videos)
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS))


def _topk(params: dict[str, Any]) -> int:
    topk = int(params.get("topk", 5))
    if topk < 1:
        raise ValueError(f"topk is {topk}: it must be 1 or more")
    return topk


def _videos(given: Any) -> tuple[list[str | bytes | None], dict[int, str]]:
    """What to label, None where an entry is no video; and why, by its number."""
    encoded = False
    if isinstance(given, pd.DataFrame):
        encoded = str(given.columns[0]) == _BASE64_COLUMN if len(given.columns) else False
        given = given.iloc[:, 0] if len(given.columns) else []
    entries = [given] if isinstance(given, (str, bytes, Path)) else list(given)
    videos: list[str | bytes | None] = []
    errors: dict[int, str] = {}
    for i, entry in enumerate(entries):
        try:
            videos.append(_video(entry, encoded=encoded))
        except (ValueError, binascii.Error) as error:
            videos.append(None)
            errors[i] = str(error)
    return videos, errors


def _video(entry: Any, *, encoded: bool) -> str | bytes:
    if isinstance(entry, (bytes, bytearray, memoryview)):
        return bytes(entry)
    if isinstance(entry, Path):
        return str(entry)
    if not isinstance(entry, str) or not entry:
        raise ValueError(f"neither a path, a URI nor bytes: {entry!r:.80}")
    if encoded or entry.startswith(_BASE64_TEXT):
        return base64.b64decode(entry.rpartition(",")[2], validate=True)
    return entry


def _answer(video: str | bytes, row: dict[str, Any]) -> dict[str, Any]:
    """Lists are empty, not null, where there is no answer: the signature knows no null list."""
    found = {name: [] if row[name] is None and name.startswith("topk") else row[name] for name in _COLUMNS}
    return found | {"uri": video if isinstance(video, str) else None}


def _failed(reason: str) -> dict[str, Any]:
    return {"uri": None, "label": None, "score": None, "topk_labels": [], "topk_scores": [], "error": reason}


mlflow.models.set_model(VideoClassifier())

"""A model in MLflow's pyfunc flavour: code and weights, never a pickle."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What the logged model needs where it is loaded without tubelet.
_REQUIREMENTS = (
    "mlflow",
    "torch",
    "av",
    "numpy",
    "safetensors",
    "pydantic",
    "pyarrow",
    "boto3",
    "cachetools",
    "tenacity",
    "typing-extensions",
    "pyyaml",
)


def save_pyfunc(model: Path, target: Path, logged: Any, run_id: str) -> None:
    """Write the folder of MLflow's kind of model: the safetensors file ``model`` and the code that reads it.

    Args:
        target: the folder, which is made; other files are left beside it.
        logged: MLflow's own entity of the model.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model

    root = Path(__file__).parents[1]
    # Only the code: byte code of this Python would be noise for another.
    code = target.parent / "tubelet"
    shutil.copytree(root, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    weights = target.parent / "weights"
    weights.mkdir()
    shutil.copyfile(model, weights / model.name)
    mlflow.pyfunc.save_model(
        path=str(target),
        python_model=str(root / "inference" / "serving.py"),
        artifacts={"weights": str(weights)},
        code_paths=[str(code)],
        signature=_signature(),
        input_example=pd.DataFrame({"uri": ["s3://bucket/path/video.mp4"]}),
        pip_requirements=[f"{name}=={found}" for name in _REQUIREMENTS if (found := _version(name))],
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=run_id,
        ),
    )


def _signature() -> Any:
    """In: one column of videos, whatever its name. Out: uri, label, score, topk_labels, topk_scores, error.

    A column without a name lets MLflow take a path, a list, a series, bytes or a table alike; the type is
    open because videos come as text or as bytes.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    inputs = Schema([ColSpec(AnyType())])
    outputs = Schema(
        [
            ColSpec(DataType.string, "uri", required=False),
            ColSpec(DataType.string, "label", required=False),
            ColSpec(DataType.double, "score", required=False),
            ColSpec(Array(DataType.string), "topk_labels"),
            ColSpec(Array(DataType.double), "topk_scores"),
            ColSpec(DataType.string, "error", required=False),
        ]
    )
    params = ParamSchema([ParamSpec("views", DataType.string, "1x1"), ParamSpec("topk", DataType.integer, 5)])
    return ModelSignature(inputs, outputs, params)


def _version(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # a local build such as +cpu is on no index
    except PackageNotFoundError:
        return None

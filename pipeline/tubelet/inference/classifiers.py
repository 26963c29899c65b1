"""Video classifiers of the Hugging Face hub as models that jobs take: ViViT and VideoMAE.

Labels, clip length and size, mean and std come from the folder's config.json and preprocessor_config.json.
Neither says how far apart the frames of a clip are; that is what their authors trained with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.vivit import ViViT, fetch_huggingface, load_huggingface, of_huggingface

# Frames between two of a clip: ViViT's 32x2, VideoMAE's 16x4 (each as on Kinetics).
STRIDES = {"vivit": 2, "videomae": 4}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """What a folder gives: the model, its labels in the order of its logits, and how clips are cut."""

    model: ViViT
    labels: list[str]
    clip: ClipSpec
    multilabel: bool
    metadata: dict[str, Any]


def classifier_folder(uri: str) -> Path | None:
    """The local folder of a Hugging Face model that ``uri`` names; None where it names something else.

    Raises:
        UserError: ``hf:NAME`` is neither in the hub's cache nor to be fetched.
    """
    if uri.startswith("hf:"):
        try:
            return fetch_huggingface(uri.removeprefix("hf:"))
        except RuntimeError as error:
            raise UserError(str(error)) from error
    folder = Path(uri.removeprefix("file://"))
    config = folder / "config.json"
    return folder if config.is_file() and "model_type" in _read_json(config) else None


def is_video_classifier(folder: Path) -> bool:
    """Whether a Hugging Face folder holds a video model of a kind that :func:`read_classifier` reads."""
    return _read_json(folder / "config.json").get("model_type") in STRIDES


def read_classifier(folder: Path, name: str, device: str | torch.device = "cpu") -> Classifier:
    """The video classifier of a folder as ``save_pretrained`` writes it.

    Args:
        folder: Holds config.json, safetensors and, as a rule, preprocessor_config.json.
        name: What the user called it.
        device: Where the model goes.

    Raises:
        UserError: no video classifier that can be read; what it is instead.
    """
    config, preprocessor = _read_json(folder / "config.json"), _read_json(folder / "preprocessor_config.json")
    kind = str(config.get("model_type"))
    if kind not in STRIDES:
        raise UserError(
            f"{name}: model_type={kind!r} is no video classifier that can be read ({', '.join(STRIDES)}); "
            "an image model can be trained from: tubelet train --init"
        )
    try:
        model, report = load_huggingface(folder)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{name}: {error}") from error
    if any(parameter.startswith("head.") for parameter in report.initialised):
        raise UserError(f"{name}: has no classifier; train one on top of it: tubelet train --init {name}")
    labels = {int(index): str(label) for index, label in (config.get("id2label") or {}).items()}
    return Classifier(
        model=model.to(device),
        labels=[labels.get(index, f"LABEL_{index}") for index in range(model.config.classes)],
        clip=_clip(model, kind, preprocessor, name),
        multilabel=config.get("problem_type") == "multi_label_classification",
        metadata={"source": name, "model_type": kind, "preprocessing": _preprocessing(preprocessor)},
    )


def _clip(model: ViViT, kind: str, preprocessor: Mapping[str, Any], name: str) -> ClipSpec:
    config = model.config
    if config.height != config.width:
        raise UserError(f"{name}: takes clips of {config.height}x{config.width}; only square ones can be cut")
    found = of_huggingface(preprocessor, config.height)
    for note in found.notes:
        logger.warning("%s: %s", name, note)
    try:
        return ClipSpec(
            frames=config.frames,
            stride=STRIDES[kind],
            size=config.height,
            short_side=max(config.height, found.short_side),
            tubelet=config.tubelet,
            interpolation=found.interpolation,
        )
    except ValidationError as error:
        raise UserError(f"{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _preprocessing(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("image_mean", "image_std", "rescale_factor", "offset", "resample", "size", "crop_size")
    return {name: preprocessor[name] for name in kept if name in preprocessor}


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is missing or holds something else."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""The ViViT family in PyTorch: configs, models, weights in and out, counting, and looking inside."""

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.counting import PRESETS, gmacs, macs_by_part, parameter_count, parameters_by_part
from tubelet.vivit.files import (
    is_ours,
    load_model,
    model_from_bytes,
    model_to_bytes,
    read_header,
    save_model,
)
from tubelet.vivit.huggingface import load_huggingface, save_huggingface
from tubelet.vivit.initialise import initialise
from tubelet.vivit.model import ViViT, fold_normalisation
from tubelet.vivit.preprocessing import Preprocessing, of_huggingface
from tubelet.vivit.report import LoadReport
from tubelet.vivit.rollout import attention_rollout, heat_maps
from tubelet.vivit.scenic import load_scenic, to_scenic
from tubelet.vivit.sources import (
    Pretrained,
    fetch_huggingface,
    init_from,
    init_from_image,
    init_from_vivit,
    read_pretrained,
)
from tubelet.vivit.transfer import InitOptions
from tubelet.vivit.tubelets import clip_to_tubelets, sample_frames_uniformly, tubelets_to_clip

__all__ = [
    "PRESETS",
    "InitOptions",
    "LoadReport",
    "Preprocessing",
    "Pretrained",
    "ViViT",
    "ViViTConfig",
    "attention_rollout",
    "clip_to_tubelets",
    "fetch_huggingface",
    "fold_normalisation",
    "gmacs",
    "heat_maps",
    "init_from",
    "init_from_image",
    "init_from_vivit",
    "initialise",
    "is_ours",
    "load_huggingface",
    "load_model",
    "load_scenic",
    "macs_by_part",
    "model_from_bytes",
    "model_to_bytes",
    "of_huggingface",
    "parameter_count",
    "parameters_by_part",
    "read_header",
    "read_pretrained",
    "sample_frames_uniformly",
    "save_huggingface",
    "save_model",
    "to_scenic",
    "tubelets_to_clip",
]

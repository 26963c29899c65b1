"""The ViViT family in PyTorch: configs, models, weights in and out, counting, and looking inside."""

from pipeline.vivit.config import ViViTConfig
from pipeline.vivit.files import load_model, read_header, save_model
from pipeline.vivit.initialise import initialise
from pipeline.vivit.model import ViViT, fold_normalisation
from pipeline.vivit.tubelets import clip_to_tubelets, sample_frames_uniformly, tubelets_to_clip

__all__ = [
    "ViViT",
    "ViViTConfig",
    "clip_to_tubelets",
    "fold_normalisation",
    "initialise",
    "load_model",
    "read_header",
    "sample_frames_uniformly",
    "save_model",
    "tubelets_to_clip",
]

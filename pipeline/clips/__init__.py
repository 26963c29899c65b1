"""References to videos become uint8 tubelets, in Ray Data.

It knows what a clip is (:class:`ClipSpec`), how a training clip is cut (:class:`TrainCrop`) and how rows
are decoded (:class:`ClipDecoder`).
"""

from pipeline.clips.decoder import Batch, ClipDecoder
from pipeline.clips.draws import generator, seed_of
from pipeline.clips.spec import ClipSpec, TrainCrop
from pipeline.clips.tubelets import clip_to_tubelets, tubelets_to_clip

__all__ = [
    "Batch",
    "ClipDecoder",
    "ClipSpec",
    "TrainCrop",
    "clip_to_tubelets",
    "generator",
    "seed_of",
    "tubelets_to_clip",
]

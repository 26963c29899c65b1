"""References to videos become uint8 tubelets, in Ray Data.

It knows what a clip is (:class:`ClipSpec`), how a training clip is cut (:class:`TrainCrop`) and how rows
are decoded (:class:`ClipDecoder`).
"""

from tubelet.clips.decoder import Batch, ClipDecoder
from tubelet.clips.draws import generator, seed_of
from tubelet.clips.spec import ClipSpec, TrainCrop, Views, parse_views
from tubelet.clips.tubelets import clip_to_tubelets, tubelets_to_clip

__all__ = [
    "Batch",
    "ClipDecoder",
    "ClipSpec",
    "TrainCrop",
    "Views",
    "clip_to_tubelets",
    "generator",
    "parse_views",
    "seed_of",
    "tubelets_to_clip",
]

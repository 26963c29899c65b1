"""Temporal ablation: clips without their motion, to see what a model makes of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tubelet.clips.draws import generator
from tubelet.clips.spec import ClipSpec
from tubelet.clips.tubelets import Uint8, tubelets_to_clip, write_tubelets

Ablation = Literal["none", "shuffle", "one-frame"]


@dataclass(frozen=True)
class Ablate:
    """:func:`ablate` as a transform of the graph of inference; picklable."""

    kind: Ablation
    seed: int

    def __call__(self, tubelets: Uint8, key: str, spec: ClipSpec) -> Uint8:
        """The views of one video, uint8 ``(V, tokens, t*h*w*3)``, changed."""
        return ablate(tubelets, key, self.kind, spec, self.seed)


def ablate(tubelets: Uint8, key: str, kind: Ablation, spec: ClipSpec, seed: int = 0) -> Uint8:
    """The views of one video, uint8 ``(V, tokens, t*h*w*3)``, with their frames changed.

    ``shuffle``: in an order drawn from (seed, key, view); ``one-frame``: one frame, drawn likewise, shown for
    the whole of the clip; ``none``: as they are.
    """
    if kind == "none":
        return tubelets
    changed = np.empty_like(tubelets)
    for view, tokens in enumerate(tubelets):
        clip = tubelets_to_clip(tokens, spec.frames, spec.size, spec.size, spec.tubelet)
        draw = generator("ablate", kind, seed, key, view)
        order = draw.permutation(spec.frames)
        if kind == "one-frame":
            order = np.repeat(order[:1], spec.frames)
        write_tubelets(clip[order], spec.tubelet, changed[view])
    return changed

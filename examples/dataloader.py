"""The decoder in a plain PyTorch DataLoader: no Ray, no manifest.

    python examples/dataloader.py VIDEO...

Each item is one uint8 clip of 16 frames spread over the whole video, scaled and cut to 112x112. A video that
cannot be decoded is a clip of zeros with `ok` False, so that a bad file costs one row and not the epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tubelet.video import DecodeError, ShortSide, Uniform, View, decode_views

FRAMES, SIZE = 16, 112
WORKERS = 1  # processes that decode: as many as there are cores to spare
VIEW = View(Uniform(FRAMES), ShortSide(128, SIZE))


class Clips(Dataset[tuple[torch.Tensor, bool]]):
    """Clips uint8 `(T, H, W, 3)` of local files, and whether each could be decoded."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        try:
            frames = decode_views(self.paths[index], [VIEW]).clips[0].frames
        except DecodeError as error:
            print(f"{self.paths[index]}: {error.code}: {error}", file=sys.stderr)
            return torch.zeros((FRAMES, SIZE, SIZE, 3), dtype=torch.uint8), False
        return torch.from_numpy(np.ascontiguousarray(frames)), True


def main(paths: Sequence[str]) -> None:
    """Print the shape and the brightness of each batch."""
    # Fresh processes: a fork of a process with threads can hang.
    loader = DataLoader(Clips(paths), batch_size=4, num_workers=WORKERS, multiprocessing_context="spawn")
    for clips, ok in loader:
        # uint8 until the device: move first, then scale there.
        brightness = clips.float().mean().item() / 255
        print(f"{tuple(clips.shape)} {clips.dtype}, {int(ok.sum())} decoded, brightness {brightness:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""ViViT in plain PyTorch: build a preset, train it for some steps on a toy task, save it, load it again.

    python examples/vivit_in_pytorch.py [FILE]

The toy clips move left or right; a still frame does not tell which.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tubelet.vivit import ViViT, ViViTConfig, gmacs, load_model, save_model

STEPS, BATCH = 30, 8


def moving_stripes(generator: torch.Generator, count: int, config: ViViTConfig) -> tuple[Tensor, Tensor]:
    """Clips uint8 `(B, T, H, W, 3)` of stripes, and which way they move: 0 left, 1 right."""
    labels = torch.randint(2, (count,), generator=generator)
    phase = 6.28 * torch.rand((count, 1, 1), generator=generator)
    x, t = torch.arange(config.width)[None, None, :], torch.arange(config.frames)[None, :, None]
    direction = (1 - 2 * labels)[:, None, None]
    stripes = 127.5 + 127.5 * torch.sin(0.4 * x + direction * t + phase)  # (B, T, W)
    shape = (count, config.frames, config.height, config.width, 3)
    return stripes[:, :, None, :, None].expand(shape).to(torch.uint8), labels


def main(file: Path) -> float:
    """Train for a few seconds; returns the share of held-out clips that the saved model gets right."""
    generator = torch.manual_seed(0)
    config = dataclasses.replace(
        ViViTConfig.preset("tiny-8x2-model2", classes=2), frames=8, height=32, width=32
    )
    model = ViViT(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {gmacs(config):.4f} GMACs per clip")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        clips, labels = moving_stripes(generator, BATCH, config)
        logits = model(clips)  # uint8 in: normalised inside, on the model's device
        loss = cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    save_model(file, model, {"classes": ["left", "right"]})
    loaded, metadata = load_model(file)
    loaded.eval()
    clips, labels = moving_stripes(generator, 64, config)
    with torch.inference_mode():
        right = (loaded(clips).argmax(-1) == labels).float().mean().item()
    print(f"{right:.0%} of held-out clips right; classes {metadata['classes']}")
    return right


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "model.safetensors")

"""What the ViViT tests share: where golden cases lie, and configs of the original as ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tubelet.vivit import ViViT, ViViTConfig

from support import SHARED

OWN_GOLDEN = Path(__file__).parents[1] / "golden"
VARIANT_OF = {
    "spacetime": "model1",
    "factorized_encoder": "model2",
    "factorized_self_attention_block": "model3",
    "factorized_dot_product_attention": "model4",
}


def golden_folders() -> list[Path]:
    """Where golden cases lie; of two files with one name the first counts."""
    asked = os.environ.get("TUBELET_GOLDEN")
    first = Path(asked) if asked else SHARED / "golden" / "given"
    if asked and not first.is_dir():
        raise FileNotFoundError(f"TUBELET_GOLDEN={asked}: no such folder")
    return [folder for folder in (first, OWN_GOLDEN) if folder.is_dir()]


def golden_files(*, but: Iterable[str] = ()) -> list[Path]:
    """All `.npz` cases but those of some kinds, each file name once."""
    found: dict[str, Path] = {}
    for folder in golden_folders():
        for path in sorted(folder.glob("*.npz")):
            if path.name not in found and golden_config(path).get("kind") not in set(but):
                found[path.name] = path
    return [found[name] for name in sorted(found)]


def golden_config(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        config: dict[str, Any] = json.loads(str(file["config"]))
    return config


class Golden:
    """One golden file: its config, and its arrays as tensors."""

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, golden_config(path)
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "config"}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """The arrays under `prefix/`, without it."""
        return {
            name[len(prefix) + 1 :]: v for name, v in self.arrays.items() if name.startswith(prefix + "/")
        }

    def beside(self, name: str) -> Path:
        """A file or folder that this one refers to: in its own folder, else in another golden folder."""
        places = [self.path.parent / name, *(folder / name for folder in golden_folders())]
        return next(place for place in places if place.exists())


def config_of(
    model: dict[str, Any], input_shape: list[int], classes: int, attention: str | None = None
) -> ViViTConfig:
    """Our config of one of the original's model configs, for clips of `input_shape` (B, T, H, W, 3)."""
    _, frames, height, width, _ = input_shape
    attention_config = model.get("attention_config", {"type": attention or "spacetime"})
    encoding = model.get("temporal_encoding_config", {"method": "3d_conv"})
    uniform = encoding["method"] == "temporal_sampling"
    h, w, *t = model["patches"]["size"]
    variant = VARIANT_OF[attention_config["type"]]
    if attention_config.get("spatial_only_baseline"):
        variant = "average"
    space = model.get("spatial_transformer", model)
    time = model.get("temporal_transformer") or space
    fields: dict[str, Any] = {
        "variant": variant,
        "frames": frames,
        "height": height,
        "width": width,
        "tubelet": (1 if uniform else t[0], h, w),
        "dim": model["hidden_size"],
        "layers": space["num_layers"],
        "heads": space["num_heads"],
        "mlp": space["mlp_dim"],
        "temporal_layers": time["num_layers"],
        "temporal_heads": time["num_heads"],
        "temporal_mlp": time["mlp_dim"],
        "classifier": model["classifier"],
        "classes": classes,
        "pre_logits": model.get("representation_size"),
        "attention_order": attention_config.get("attention_order", "space_time"),
    }
    if uniform:
        fields |= {"tokeniser": "uniform", "sampled_frames": min(encoding["n_sampled_frames"], frames)}
    return ViViTConfig.from_dict(fields)


def image_config(model: dict[str, Any], size: int, classes: int, **changes: Any) -> ViViTConfig:
    """An image ViT is Model 1 on a clip of one frame."""
    h, w = model["patches"]["size"]
    video = model | {"patches": {"size": [h, w, 1]}}
    return config_of(video, [1, 1, size, size, 3], classes).replace(**changes)


def randomised(model: ViViT, seed: int = 0) -> ViViT:
    """Every parameter drawn, also those that start at zero, so that no test passes because of zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + offset)
    return model.eval()

"""Features of single frames: what they hold, and that a model goes on from them exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.vivit import randomised
from tubelet.vivit import ViViT, ViViTConfig


def build(variant: str, **changes: Any) -> ViViT:
    config = ViViTConfig.preset(f"tiny-8x1-{variant}", classes=3, **changes)
    return randomised(ViViT(config)).eval()


CASES: list[tuple[str, dict[str, Any]]] = [
    ("model2", {}),
    ("model2", {"classifier": "gap", "class_token": True, "registers": 2}),
    ("model2", {"classifier": "gap", "fc_norm": True}),
    ("model2", {"classifier": "map"}),
    ("model2", {"classifier": "gmp"}),
    ("model2", {"classifier": "gsp"}),
    ("model2", {"tubelet": (2, 8, 8)}),
    ("model2", {"tokeniser": "uniform", "sampled_frames": 4}),
    ("average", {}),
    ("average", {"classifier": "token", "fc_norm": True}),
    ("average", {"classifier": "token_gap", "temporal_pool": "mean_diff"}),
    ("average", {"temporal_pool": "attention", "pre_logits": 7}),
]


@pytest.mark.parametrize(("variant", "changes"), CASES, ids=[f"{v}-{'-'.join(c)}" for v, c in CASES])
def test_going_on_from_frames_is_the_whole_model_bit_for_bit(variant: str, changes: dict[str, Any]) -> None:
    model = build(variant, **changes)
    clips = torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        frames = model.frame_features(clips)
        assert frames.shape == (3, model.config.grid[0], 2, 64)
        wanted, found = (
            model(clips, features=True),
            model.classify_frames(frames, features=True),
        )
        assert torch.equal(model.classify_frames(frames), wanted[0])
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_class_token_and_mean_of_the_patches() -> None:
    model = build("average", registers=2)
    clips = torch.randn(2, 8, 32, 32, 3)
    tokens = model.encoder(model.embed(clips).view(2, 8, 16, 64))
    frames = model.frame_features(clips)
    assert torch.equal(frames[:, :, 0], tokens[:, :, 0])
    assert torch.equal(frames[:, :, 1], tokens[:, :, 3:].mean(2))


def test_without_a_class_token_the_pooled_output_takes_its_place() -> None:
    clips = torch.randn(2, 8, 32, 32, 3)
    gap, pooled = build("average", classifier="gap"), build("average", classifier="map")
    frames = gap.frame_features(clips)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    tokens = pooled.encoder(pooled.embed(clips).view(2, 8, 16, 64))
    assert torch.equal(pooled.frame_features(clips)[:, :, 0], pooled.encoder.pool(tokens))


def test_a_model_that_sees_several_frames_at_once_has_none() -> None:
    with pytest.raises(ValueError, match="only model2 and average have"):
        build("model1").frame_features(torch.zeros(1, 8, 32, 32, 3))

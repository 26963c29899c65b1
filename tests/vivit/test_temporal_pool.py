"""Frames to a clip without a temporal transformer: what each pooling computes, and that all parts know it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.vivit import randomised
from tubelet.vivit import (
    ViViT,
    ViViTConfig,
    attention_rollout,
    init_from_vivit,
    load_model,
    macs_by_part,
    parameter_count,
    save_model,
)


def build(**changes: Any) -> ViViT:
    return randomised(ViViT(ViViTConfig.preset("tiny-8x1-average", classes=3, **changes)))


def test_statistics_over_frames() -> None:
    clip = torch.randn(2, 8, 32, 32, 3)
    model = build()
    frames = model.encode(clip)
    assert frames.shape == (2, 8, 64)
    pooled = {kind: build(temporal_pool=kind)(clip, features=True)[1] for kind in ("mean_std", "mean_diff")}
    mean, deviation = frames.mean(1), frames.std(1, unbiased=False)
    torch.testing.assert_close(pooled["mean_std"], torch.cat((mean, deviation), 1), atol=1e-5, rtol=0)
    steps = (frames[:, 1:] - frames[:, :-1]).abs().mean(1)
    torch.testing.assert_close(pooled["mean_diff"], torch.cat((mean, steps), 1), atol=1e-5, rtol=0)
    both = build(classifier="token_gap", temporal_pool="mean_std")(clip, features=True)[1]
    assert both.shape == (2, 256)
    tokens = model.encoder(model.embed(clip).view(2, 8, 16, 64))
    wanted = torch.cat((tokens[:, :, 0], tokens[:, :, 1:].mean(2)), dim=-1).mean(1)
    torch.testing.assert_close(both[:, :128], wanted, atol=1e-5, rtol=0)


def test_one_frame_has_no_motion() -> None:
    clip = torch.randn(1, 1, 32, 32, 3)
    for kind in ("mean_std", "mean_diff"):
        pooled = build(frames=1, temporal_pool=kind)(clip, features=True)[1]
        assert pooled.isfinite().all()
        assert not pooled[:, 64:].any()


@pytest.mark.parametrize("classifier", ["token", "token_gap", "map"])
@pytest.mark.parametrize("kind", ["mean", "mean_std", "mean_diff", "attention"])
def test_every_part_knows_the_pooling(kind: str, classifier: str, tmp_path: Path) -> None:
    model = build(temporal_pool=kind, classifier=classifier, registers=2)
    assert ("temporal_pool" in model.config.to_dict()) == (kind != "mean")
    save_model(tmp_path / "model.safetensors", model)
    again, _ = load_model(tmp_path / "model.safetensors")
    clip = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    torch.testing.assert_close(again(clip), model(clip), atol=1e-5, rtol=1e-5)
    assert parameter_count(model.config) == sum(p.numel() for p in model.parameters())
    assert min(macs_by_part(model.config).values()) >= 0
    rolled = attention_rollout(model, clip)
    torch.testing.assert_close(rolled.sum((1, 2, 3)), torch.ones(2))
    copied = ViViT(model.config).eval()
    report = init_from_vivit(copied, model, head=True)
    assert not report.left_over
    assert not report.initialised
    torch.testing.assert_close(copied(clip), model(clip), atol=1e-5, rtol=1e-5)


def test_other_variants_have_none() -> None:
    for changes in ({"temporal_pool": "mean_std"}, {"classifier": "token_gap"}):
        with pytest.raises(ValueError, match='only with variant="average"'):
            ViViTConfig.preset("tiny-8x2-model2", classes=2, **changes)

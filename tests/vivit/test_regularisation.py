"""Dropout and stochastic depth: rates by layer, what is shared over frames, and what is scaled."""

from __future__ import annotations

import pytest
import torch
from support.vivit import randomised
from torch import Tensor
from tubelet.vivit import ViViT, ViViTConfig
from tubelet.vivit.layers import Dropout, StochasticDepth


def rates(model: ViViT) -> list[list[float]]:
    encoders = [encoder for encoder in (model.encoder, model.temporal_encoder) if encoder is not None]
    return [[block.depth.rate for block in encoder.blocks] for encoder in encoders]


def test_rate_grows_from_zero_to_the_last_layer_in_each_encoder() -> None:
    config = ViViTConfig.preset("tiny-8x2-model2", classes=2, layers=3, stochastic_depth=0.3)
    assert rates(ViViT(config)) == [pytest.approx([0, 0.15, 0.3]), pytest.approx([0, 0.1, 0.2, 0.3])]
    assert rates(ViViT(config.replace(layers=1, temporal_layers=1))) == [[0.0], [0.0]]


@pytest.mark.parametrize(("scaling", "kept"), [(False, 1.0), (True, 1 / 0.7)])
def test_kept_branches_are_scaled_only_on_request(scaling: bool, kept: float) -> None:
    torch.manual_seed(0)
    depth = StochasticDepth(0.3, scaling, per_frame=False).train()
    out = depth(torch.ones(4000, 2, 3, 5))
    assert out.unique().tolist() == pytest.approx([0.0, kept])
    assert (out == 0).all(dim=(1, 2, 3)).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(out[:, :1, :1, :1].expand_as(out), out)
    assert torch.equal(depth.eval()(torch.ones(4, 2, 3, 5)), torch.ones(4, 2, 3, 5))


def frames_of_one_clip(shared: bool, **rates: float) -> Tensor:
    """The spatial encoder's output of each frame of a still clip; equal where the masks are."""
    torch.manual_seed(0)
    config = ViViTConfig.preset(
        "tiny-8x2-model2", classes=2, layers=6, share_masks_over_frames=shared, **rates
    )
    model = randomised(ViViT(config)).train()
    frame = torch.randn(1, 1, 16, 64).expand(8, 4, 16, 64)
    with torch.no_grad():
        return model.encoder(frame)[:, :, 0]


@pytest.mark.parametrize("rates", [{"dropout": 0.2}, {"stochastic_depth": 0.5}])
def test_model_2_shares_masks_over_frames(rates: dict[str, float]) -> None:
    shared = frames_of_one_clip(True, **rates)
    torch.testing.assert_close(shared, shared[:, :1].expand_as(shared), atol=1e-5, rtol=1e-5)
    assert (shared[0] - shared[1]).abs().max() > 1e-2  # clips differ
    own = frames_of_one_clip(False, **rates)
    assert (own - own[:, :1]).abs().max() > 1e-2


def test_dropout_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    for shared in (False, True):
        out = Dropout(0.25, shared).train()(torch.ones(64, 4, 16, 32))
        assert out.mean().item() == pytest.approx(1, abs=0.02)
        assert torch.equal(out[:, :1].expand_as(out), out) == shared


@pytest.mark.parametrize("variant", ["model1", "model2", "model3", "model4", "average"])
def test_nothing_is_dropped_in_evaluation(variant: str) -> None:
    rates = {"dropout": 0.5, "attention_dropout": 0.5, "stochastic_depth": 0.5}
    config = ViViTConfig.preset(f"tiny-8x2-{variant}", classes=5)
    plain, dropped = randomised(ViViT(config)), randomised(ViViT(config.replace(**rates)))
    x = torch.randn(2, 64, 384)
    assert torch.equal(plain(x), dropped(x))
    assert not torch.allclose(dropped.train()(x), plain(x), atol=1e-3)

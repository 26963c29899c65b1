"""What goes into a model and what comes out, for every variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.vivit import randomised
from torch import Tensor
from tubelet.vivit import (
    ViViT,
    ViViTConfig,
    clip_to_tubelets,
    fold_normalisation,
    load_model,
    save_model,
)

VARIANTS = ("model1", "model2", "model3", "model4", "average")
CLASSIFIERS = {
    "model1": ("token", "gap", "gmp", "gsp", "0"),
    "model2": ("token", "gap", "gmp", "gsp", "0"),
    "average": ("token", "gap", "gmp", "gsp", "0"),
    "model3": ("gap", "gmp", "gsp"),
    "model4": ("gap", "gmp", "gsp"),
}


def build(variant: str, **changes: Any) -> ViViT:
    return randomised(ViViT(ViViTConfig.preset(f"tiny-8x2-{variant}", **({"classes": 5} | changes))))


def a_clip(config: ViViTConfig, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (batch, config.frames, config.height, config.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tubelets_clips_and_floats_give_equal_logits(variant: str) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = build(variant, mean=mean, std=std)
    clip = a_clip(model.config)
    normalised = (clip / 255 - torch.tensor(mean)) / torch.tensor(std)
    logits = model(clip)
    assert logits.shape == (2, 5)
    assert torch.equal(model(clip_to_tubelets(clip, (2, 8, 8))), logits)
    torch.testing.assert_close(model(normalised), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(clip_to_tubelets(normalised, (2, 8, 8))), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.485, 0.456, 0.406)])
def test_folded_model_only_centres(mean: tuple[float, float, float], tmp_path: Path) -> None:
    model = build("model2", mean=mean)
    clip = a_clip(model.config)
    before = model(clip)
    fold_normalisation(model)
    torch.testing.assert_close(model(clip), before, atol=1e-5, rtol=1e-5)
    # The embedding takes x - 127.5 as it is: no normalisation is left.
    assert torch.equal(model(clip.float() - 127.5), model(clip))
    save_model(tmp_path / "folded.safetensors", model)
    assert torch.equal(load_model(tmp_path / "folded.safetensors")[0](clip), model(clip))


@pytest.mark.parametrize(("variant", "classifier"), [(v, c) for v in VARIANTS for c in CLASSIFIERS[v]])
def test_every_classifier(variant: str, classifier: str) -> None:
    model = build(variant, classifier=classifier, pre_logits=16)
    logits, pooled = model(a_clip(model.config), features=True)
    assert logits.shape == (2, 5)
    assert pooled.shape == (2, 64)
    hidden = torch.tanh(model.pre_logits(pooled))
    assert torch.equal(model.head(hidden), logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_size_and_patch(variant: str) -> None:
    """Uneven sizes: what does not fill a tubelet is dropped."""
    model = build(variant, frames=7, height=25, width=39, tubelet=(3, 7, 5))
    assert model.config.grid == (2, 3, 7)
    clip = a_clip(model.config)
    assert torch.equal(model(clip), model(clip_to_tubelets(clip, (3, 7, 5))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_uniform_sampling_takes_all_or_the_picked_frames(variant: str) -> None:
    model = build(variant, tokeniser="uniform", sampled_frames=4, tubelet=(1, 8, 8))
    clip = a_clip(model.config)
    logits = model(clip)
    assert torch.equal(model(clip_to_tubelets(clip, (1, 8, 8))), logits)
    assert torch.equal(model(clip_to_tubelets(clip[:, [2, 3, 5, 6]], (1, 8, 8))), logits)


def test_label_sets_share_one_projection_in_order() -> None:
    model = build("model2", classes=0, heads_classes={"noun": 3, "verb": 2})
    logits = model(a_clip(model.config))
    assert list(logits) == ["noun", "verb"]
    pooled = model(a_clip(model.config), features=True)[1]
    assert torch.equal(torch.cat(list(logits.values()), 1), model.head(pooled))
    assert logits["noun"].shape == (2, 3)


def test_wrong_shape_says_what_fits() -> None:
    model = build("model1")
    for shape in ((2, 63, 384), (2, 64, 192), (2, 8, 32, 31, 3), (2, 8, 3, 32, 32), (8, 32, 32, 3)):
        with pytest.raises(ValueError, match=r"\(B, 64, 384\) or clips \(B, 8, 32, 32, 3\)"):
            model(torch.zeros(shape))


@pytest.mark.parametrize("variant", VARIANTS)
def test_clips_of_a_batch_do_not_touch(variant: str) -> None:
    """A wrong fold of batch into time or place would mix them."""
    model = build(variant)
    clip = a_clip(model.config, batch=3)
    torch.testing.assert_close(model(clip)[1:2], model(clip[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_checkpointing_changes_no_gradient(variant: str) -> None:
    model = build(variant, dropout=0.1, stochastic_depth=0.2).train()
    gradients = []
    for on in (False, True):
        model.activation_checkpointing(on)
        model.zero_grad()
        torch.manual_seed(5)
        model(a_clip(model.config)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-5, rtol=1e-4)


def test_activation_checkpointing_keeps_less() -> None:
    """Counted in bytes saved for the backward pass."""
    kept = {}
    for on in (False, True):
        model = build("model1", layers=4).train()
        model.activation_checkpointing(on)
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(a_clip(model.config))
        kept[on] = total
    assert kept[True] < kept[False] / 2

"""The weighted loss, its heads, mixup and CutMix, clipping, groups, averaged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tubelet.training.losses import Objective
from tubelet.training.mixup import Mix, apply_mix, draw_mix
from tubelet.training.optim import (
    Ema,
    clip_gradients,
    freeze_parameters,
    level_of,
    make_optimiser,
    parameter_groups,
    set_lr,
)
from tubelet.training.recipe import AugmentSettings, OptimiserSettings
from tubelet.vivit import ViViT, ViViTConfig, tubelets_to_clip

CONFIG = ViViTConfig.preset("tiny-8x2-model2", classes=3)


def batch(count: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, CONFIG.tokens, CONFIG.token_values)
    return (
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        torch.randint(0, 3, (count,), generator=generator),
    )


def test_loss_over_ranks_is_the_loss_of_the_global_batch() -> None:
    objective = Objective({"label": 3}, smoothing=0.1)
    logits, labels = torch.randn(10, 3), torch.randint(0, 3, (10,))
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1, 0, 0, 0, 1])
    targets = objective.targets({"label": labels})
    whole = objective(logits, targets, weight)
    # Unequal shares, one of them with few good clips: sums and weights still add up.
    parts = [slice(0, 3), slice(3, 9), slice(9, 10)]
    pairs = [objective(logits[p], {"label": targets["label"][p]}, weight[p]) for p in parts]
    torch.testing.assert_close(sum(total for total, _ in pairs), whole[0])
    torch.testing.assert_close(sum(w for _, w in pairs), whole[1])
    good = weight > 0
    expected = F.cross_entropy(logits[good], labels[good], label_smoothing=0.1)
    torch.testing.assert_close(whole[0] / whole[1], expected)


def test_a_failed_clip_has_no_gradient() -> None:
    objective = Objective({"label": 3})
    logits = torch.randn(2, 3, requires_grad=True)
    targets = objective.targets({"label": torch.tensor([0, 1])})
    total, weight = objective(logits, targets, torch.tensor([1.0, 0.0]))
    (total / weight).backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1].abs().sum() == 0


def test_several_heads_are_averaged_each_smoothed_with_its_own_classes() -> None:
    objective = Objective({"noun": 4, "verb": 2}, smoothing=0.2)
    logits = {"noun": torch.randn(5, 4), "verb": torch.randn(5, 2)}
    labels = {"noun": torch.randint(0, 4, (5,)), "verb": torch.randint(0, 2, (5,))}
    total, weight = objective(logits, objective.targets(labels), torch.ones(5))
    each = [F.cross_entropy(logits[h], labels[h], label_smoothing=0.2) for h in logits]
    torch.testing.assert_close(total / weight, (each[0] + each[1]) / 2)


def test_multilabel_is_binary_cross_entropy() -> None:
    objective = Objective({"label": 3}, multilabel=True)
    logits, hot = torch.randn(4, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    total, weight = objective(logits, objective.targets({"label": hot}), torch.ones(4))
    torch.testing.assert_close(total / weight, F.binary_cross_entropy_with_logits(logits, hot.float()))


# ---- mixing


def test_the_draw_is_a_function_of_seed_and_step() -> None:
    mixing = AugmentSettings(mixup=0.3, cutmix=1.0)
    draws = [draw_mix(mixing, 1, step) for step in range(50)]
    assert draws == [draw_mix(mixing, 1, step) for step in range(50)]
    assert draws != [draw_mix(mixing, 2, step) for step in range(50)]
    assert {draw is not None and draw.box is None for draw in draws} == {True, False}
    assert draw_mix(AugmentSettings(), 1, 0) is None


def test_mixup_draws_follow_the_beta_distribution() -> None:
    keeps = [draw_mix(AugmentSettings(mixup=2.0), 0, step) for step in range(2000)]
    values = np.array([mix.keep for mix in keeps if mix])
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert values.var() == pytest.approx(1 / 20, abs=0.005)  # of Beta(2, 2)


def test_nothing_is_mixed_with_a_failed_clip() -> None:
    x, labels = batch()
    pixels, weight = x.float(), torch.tensor([1.0, 1, 1, 1, 1, 0])
    targets = Objective({"label": 3}).targets({"label": labels})
    mixed, soft = apply_mix(Mix(0.25), pixels, targets, weight, CONFIG)
    torch.testing.assert_close(mixed[0], pixels[0])  # its partner, the last, failed
    torch.testing.assert_close(soft["label"][0], targets["label"][0])
    torch.testing.assert_close(mixed[1], 0.25 * pixels[1] + 0.75 * pixels[4])
    torch.testing.assert_close(soft["label"][1], 0.25 * targets["label"][1] + 0.75 * targets["label"][4])


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.floats(0, 1)] * 4))
def test_cutmix_cuts_one_box_through_all_frames_and_labels_by_area(
    edges: tuple[float, float, float, float],
) -> None:
    top, bottom = sorted(edges[:2])
    left, right = sorted(edges[2:])
    x, labels = batch()
    targets = Objective({"label": 3}).targets({"label": labels})
    mixed, soft = apply_mix(Mix(0.5, (top, bottom, left, right)), x, targets, torch.ones(6), CONFIG)
    clips, before = (tubelets_to_clip(t, CONFIG.grid, CONFIG.tubelet) for t in (mixed, x))
    rows = slice(round(top * 32), round(bottom * 32))
    columns = slice(round(left * 32), round(right * 32))
    expected = before.clone()
    expected[:, :, rows, columns] = before.flip(0)[:, :, rows, columns]
    assert torch.equal(clips, expected)
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / 32**2
    want = (1 - share) * targets["label"] + share * targets["label"].flip(0)
    torch.testing.assert_close(soft["label"], want, rtol=0, atol=1e-6)


# ---- optimiser


def test_clipping_is_exact_and_leaves_small_gradients_alone() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 1.0) == 5.0
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))
    assert clip_gradients([parameter], 2.0) == 1.0
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))
    assert clip_gradients([parameter], None) == 1.0


def test_layer_decay_falls_from_the_head_down() -> None:
    model = ViViT(CONFIG)
    names = [name for name, _ in model.named_parameters()]
    top = CONFIG.layers + CONFIG.temporal_layers + 1
    levels = {name: level_of(name, model) for name in names}
    assert {levels[n] for n in names if n.startswith("head")} == {top}
    assert {levels[n] for n in names if n.startswith("embedding")} == {0}
    assert levels["encoder.position"] == 0
    assert {levels[n] for n in names if n.startswith("encoder.blocks.1.")} == {2}
    assert {levels[n] for n in names if n.startswith("temporal_encoder.blocks.0.")} == {CONFIG.layers + 1}
    assert levels["temporal_encoder.norm.weight"] == top - 1
    optimiser = make_optimiser(model, OptimiserSettings(name="adamw", layer_decay=0.5))
    set_lr(optimiser, 8.0)
    rates = {group["lr"] for group in optimiser.param_groups}
    assert rates == {8.0 * 0.5**k for k in range(top + 1)}


def test_decay_spares_biases_norms_positions_and_class_tokens() -> None:
    model = ViViT(CONFIG)
    groups = parameter_groups(model, OptimiserSettings(name="adamw", weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith(("bias", "cls", "position")) or "norm" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.1), name
    assert len(decay) == len(list(model.parameters()))


def test_only_the_head_learns_on_a_frozen_backbone() -> None:
    model = ViViT(CONFIG)
    freeze_parameters(model, "backbone")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = make_optimiser(model, OptimiserSettings(lr=0.5))
    x, labels = batch()
    F.cross_entropy(model(x), labels).backward()
    optimiser.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_averaged_weights_resume_to_the_bit() -> None:
    def run(steps: range, model: ViViT, ema: Ema) -> None:
        for step in steps:
            torch.manual_seed(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))
            ema.update(model)

    torch.manual_seed(0)
    whole = ViViT(CONFIG)
    torch.manual_seed(0)
    cut = ViViT(CONFIG)
    one, two = Ema(whole, 0.9), Ema(cut, 0.9)
    run(range(6), whole, one)
    run(range(3), cut, two)
    saved = {name: value.clone() for name, value in two.state_dict().items()}
    resumed = Ema(cut, 0.9)
    resumed.load_state_dict(saved)
    run(range(3, 6), cut, resumed)
    for name, value in one.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    one.copy_to(whole)
    assert torch.equal(whole.head.weight, one.weights["head.weight"])


def test_averages_follow_the_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = Ema(model, 0.5)
    expected = 0.0
    for n in range(12):
        model.weight.data.fill_(float(n))
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert float(ema.weights["weight"]) == pytest.approx(expected, rel=1e-6)

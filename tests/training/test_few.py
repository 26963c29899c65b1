"""Heads on frozen features: what is fitted is what the model says, and the choice is an honest one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tubelet.training.few.assemble import fit_chosen, linear_head
from tubelet.training.few.candidates import (
    Candidate,
    Search,
    ensemble_of,
    linear_candidates,
    probe_candidates,
)
from tubelet.training.few.choose import choose, leaking_groups
from tubelet.training.few.curve import drawn, learning_curve, power_law
from tubelet.training.few.folds import make_folds
from tubelet.training.few.honest import corrected
from tubelet.training.few.linear import POOLS, TOKENS, fit_linear, pooled
from tubelet.training.few.probes import ProbeSettings
from tubelet.training.few.task import Task
from tubelet.vivit import ViViT, ViViTConfig

FRAMES, DIM = 4, 16


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def encoder(classes: int = 3, **changes: object) -> ViViT:
    """A model of frames with weights that are no longer those of the start."""
    torch.manual_seed(0)
    config = ViViTConfig.preset(
        "tiny-8x1-average",
        classes=classes,
        **{"frames": FRAMES, "height": 16, "width": 16, "dim": DIM, "heads": 2, "mlp": 32, **changes},
        classifier="token_gap",
    )
    model = ViViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def videos(n: int = 36, classes: int = 3) -> tuple[torch.Tensor, Task]:
    """Noise, brighter by the class; six groups."""
    draw = np.random.default_rng(0)
    labels = np.arange(n) % classes
    x = draw.integers(0, 150, (n, FRAMES, 16, 16, 3)) + 40 * labels[:, None, None, None, None]
    task = Task({"label": list("abcdef"[:classes])}, {"label": labels}, (np.arange(n) // 6).astype(str))
    return torch.from_numpy(x.astype(np.uint8)), task


@torch.inference_mode()
def frames_of(model: ViViT, clips: torch.Tensor) -> np.ndarray:
    return model.frame_features(clips).numpy()


@torch.inference_mode()
def test_every_head_folds_into_one_model() -> None:
    base = encoder()
    clips, task = videos()
    frames = frames_of(base, clips)
    heads = [Candidate("", "linear", None, 0.0, t, p, strength=0.1) for t in TOKENS for p in POOLS]
    heads += [Candidate("", "attention", None, 0.0, "both")]
    heads += [Candidate("", "temporal", None, 0.0, t, layers=n) for t, n in (("class", 2), ("patch", 1))]
    for candidate in heads:
        with torch.inference_mode(False):
            fitted = fit_chosen(candidate, frames, task, base, ProbeSettings(epochs=2))
        model = fitted.model
        whole = model(clips)
        np.testing.assert_allclose(whole, fitted.logits(frames), atol=1e-4)
        # Of a probe, the last norm of the encoder has changed with it: its own frames give its own logits.
        np.testing.assert_allclose(whole, model.classify_frames(model.frame_features(clips)), atol=1e-4)


def test_rotation_changes_nothing_of_the_solution() -> None:
    """Wide features go through their rows' span; scikit-learn on the features themselves says the same."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    draw = np.random.default_rng(1)
    _, task = videos()
    x = draw.normal(size=(36, 80)) * draw.uniform(0.1, 10, 80) + 5
    for strength, head in zip((0.01, 1.0), fit_linear(x, task, (0.01, 1.0)), strict=True):
        plain = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8, max_iter=5000))
        plain.fit(x, task.targets["label"])
        ours = head(x)
        ours -= ours.mean(1, keepdims=True)
        np.testing.assert_allclose(ours, plain.decision_function(x), atol=5e-3)


def test_two_classes_and_several_labels_have_a_logit_each() -> None:
    draw = np.random.default_rng(2)
    x = draw.normal(size=(40, 6))
    labels = (x[:, 0] > 0).astype(np.int64)
    groups = np.arange(40).astype(str)
    two = Task({"label": ["no", "yes"]}, {"label": labels}, groups)
    logits = fit_linear(x, two, [1.0])[0](x)
    assert two.scores(logits).mean() > 0.9
    hot = np.stack([x[:, 0] > 0, x[:, 1] > 0, x[:, 2] > -9], 1).astype(np.uint8)
    many = Task({"label": ["a", "b", "always"]}, {"label": hot}, groups, multilabel=True)
    logits = fit_linear(x, many, [1.0])[0](x)
    assert many.measure == "lrap"
    assert many.scores(logits).mean() > 0.9
    assert (logits[:, 2] > 0).all()
    heads = Task({"one": ["a", "b"], "two": ["c", "d"]}, {"one": labels, "two": 1 - labels}, groups)
    logits = fit_linear(x, heads, [1.0])[0](x)
    assert logits.shape == (40, 4)
    assert heads.scores(logits).mean() > 0.9


def test_folds_keep_groups_together_and_count_what_lacks_a_class() -> None:
    labels = np.array([0] * 12 + [1] * 12 + [2] * 12)
    # Class 2 comes from one group alone.
    groups = np.array([f"g{i % 3}" for i in range(12)] + [f"g{i % 3}" for i in range(12)] + ["alone"] * 12)
    task = Task({"label": list("abc")}, {"label": labels}, groups)
    folds = make_folds(task, np.arange(36), folds=5, repeats=2, seed=0)
    for repeat in folds.repeats:
        assert sorted(np.concatenate([scored for _, scored in repeat])) == list(range(36))
        for fit, scored in repeat:
            assert not set(groups[fit]) & set(groups[scored])
    assert folds.lacking_fit == 2
    assert any("lack a class" in note for note in folds.notes)
    same = make_folds(task, np.arange(36), folds=5, repeats=2, seed=0)
    for one, other in zip(folds.repeats[1], same.repeats[1], strict=True):
        np.testing.assert_array_equal(one[1], other[1])


def test_groups_that_are_the_classes_cannot_be_kept_apart() -> None:
    labels = np.arange(20) % 2
    task = Task({"label": ["a", "b"]}, {"label": labels}, labels.astype(str))
    segments = np.arange(20) // 2 * 2 + labels  # two rows of each video
    folds = make_folds(task, segments // 4, folds=5, repeats=1, seed=0)
    assert not folds.grouped
    assert "flatters" in folds.notes[0]
    for fit, scored in folds.repeats[0]:
        assert not set(segments[fit] // 4) & set(segments[scored] // 4)


def test_ensemble_of_two_heads_is_one_linear_map() -> None:
    base, (clips, task) = encoder(), videos()
    frames = frames_of(base, clips)
    kinds = [("class", "mean", 0.1), ("both", "mean_diff", 0.01), ("patch", "mean_diff", 1.0)]
    members = [Candidate("", "linear", np.zeros(1), 0.0, t, p, strength=c) for t, p, c in kinds]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        both = ensemble_of(members[first], members[second])
        assert both is not None
        each = [
            linear_head(member, frames, task)(pooled(frames, member.tokens, member.pool))
            for member in (members[first], members[second])
        ]
        whole = linear_head(both, frames, task)(pooled(frames, both.tokens, both.pool))
        np.testing.assert_allclose(whole, sum(each) / 2, atol=1e-9)
        with torch.inference_mode():
            model = fit_chosen(both, frames, task, base, ProbeSettings()).model
            np.testing.assert_allclose(model(clips), whole, atol=1e-4)
    other = Candidate("", "linear", np.zeros(1), 0.0, "class", "mean_std", strength=0.1)
    assert ensemble_of(other, members[1]) is None


def test_luck_of_the_choice_is_taken_off() -> None:
    """Of fifty heads that guess, the best looks good on the clips it was chosen on, and only there."""
    draw = np.random.default_rng(0)
    scores = (draw.random((50, 60)) < 0.5).astype(float)
    found = corrected(scores, np.arange(60).astype(str))
    assert scores.mean(1).max() > 0.62
    assert abs(found.mean - 0.5) < 0.07
    assert found.interval[0] < 0.5 < found.interval[1]


def synthetic(kind: str, n: int = 60) -> tuple[np.ndarray, Task]:
    """Features whose class lies in every frame, in how they move, or nowhere."""
    draw = np.random.default_rng(3)
    labels = np.arange(n) % 2
    x = draw.normal(size=(n, FRAMES, 2, DIM)).astype(np.float32)
    if kind == "scene":
        x[:] = x[:, :1]  # nothing moves
        x[:, :, 0, :3] += 3 * labels[:, None, None]
    if kind == "motion":
        sign = np.where(np.arange(FRAMES) % 2, 1, -1)[None, :, None, None]
        x[..., :8] *= 0.3
        x[..., :8] += sign * 2 * labels[:, None, None, None] * draw.choice([-1, 1], (n, 1, 1, 1))
    groups = (np.arange(n) // 5).astype(str)
    return x, Task({"label": ["a", "b"]}, {"label": labels}, groups)


@pytest.mark.parametrize(("kind", "motion"), [("scene", False), ("motion", True)])
def test_choice_follows_the_data(kind: str, motion: bool) -> None:
    frames, task = synthetic(kind)
    folds = make_folds(task, np.arange(len(task)), folds=4, repeats=2, seed=0)
    search = Search(layers=(1,), probe=ProbeSettings(epochs=1))
    base = encoder(classes=2).config
    found = [
        *linear_candidates(frames, task, folds, search, base),
        *probe_candidates(frames, task, folds, search, base),
    ]
    choice = choose(found, task, folds)
    assert choice.chosen.choosable
    assert choice.corrected.mean > 0.85
    assert any("one frame" in line for line in choice.warnings) is not motion
    assert ("mean_diff" in choice.chosen.name or "mean_std" in choice.chosen.name) is motion
    rows = choice.rows(task)
    assert {row["family"] for row in rows} >= {"frame", "linear", "attention", "temporal"}
    assert sum(row["chosen"] for row in rows) == 1
    assert len([row for row in rows if row["family"] == "linear"]) == 9  # one for each pooling


def test_warnings_of_classes_too_small_and_of_one_answer() -> None:
    frames, task = synthetic("nothing", 24)
    labels = np.r_[np.zeros(21, np.int64), np.ones(3, np.int64)]
    task = Task({"label": ["usual", "rare"]}, {"label": labels}, np.arange(24).astype(str))
    folds = make_folds(task, np.arange(24), folds=3, repeats=1, seed=0)
    found = list(linear_candidates(frames, task, folds, Search(strengths=(1e-4,)), encoder(classes=2).config))
    warnings = "\n".join(choose(found, task, folds).warnings)
    assert "'rare' 3" in warnings
    assert "every clip is called 'usual'" in warnings
    assert "one frame does as well" in warnings


def test_groups_that_leak_between_splits() -> None:
    splits = ["train", "train", "test", "test", "val", None]
    lines = leaking_groups(splits, ["a", "b", "b", "c", None, "a"])
    assert len(lines) == 1
    assert "train and in test" in lines[0]
    assert "'b'" in lines[0]


def test_learning_curve_draws_nested_labels_and_guesses_by_a_power_law() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(160) % 2
    x = draw.normal(size=(160, 8))
    x[:, 0] += 1.5 * labels
    task = Task({"label": ["a", "b"]}, {"label": labels}, (np.arange(160) // 4).astype(str))
    folds = make_folds(task, np.arange(160), folds=4, repeats=2, seed=0)
    curve = learning_curve(x, task, folds, 0.1)
    assert [point.labels for point in curve.points] == [5, 10, 20, 50, 80]
    assert curve.points[0].mean < curve.points[-1].mean
    assert curve.points[0].clips == 10
    assert curve.doubled is not None
    assert curve.points[-1].mean - 0.02 <= curve.doubled <= 1
    assert curve.doubled_interval[0] <= curve.doubled_interval[1]
    rows = np.arange(160)
    small, large = (set(drawn(task, rows, size, 0, 1)) for size in (5, 20))
    assert small < large
    assert len(small) == 10
    law = power_law([10, 20, 40, 80], [0.9 - 2 * n**-0.7 for n in (10, 20, 40, 80)])
    assert law is not None
    assert law[0] - law[1] * 160 ** -law[2] == pytest.approx(0.9 - 2 * 160**-0.7, abs=0.005)
    assert power_law([10, 20], [0.5, 0.6]) is None

"""Metrics by hand: intervals, tables, joint accuracy, calibration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tubelet.evaluation.figures import evaluation_figures
from tubelet.evaluation.metrics import (
    bootstrap_interval,
    joint_correct,
    multi_label_report,
    reliability,
    single_label_report,
    topk_correct,
)
from tubelet.inference.forward import mean_over_views


def test_views_average_raw_logits_not_probabilities() -> None:
    # One sure view against two that lean the other way: the mean of probabilities would pick class 1.
    views = torch.tensor([[[9.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert mean_over_views(views).argmax(-1).tolist() == [0]
    assert torch.softmax(views, -1).mean(1)[0, 0] < 0.52


def test_topk_counts_the_k_highest() -> None:
    logits = torch.tensor([[5.0, 4, 3, 2], [1, 2, 3, 4]])
    labels = torch.tensor([2, 3])
    assert [topk_correct(logits, labels, k).tolist() for k in (1, 3, 9)] == [
        [False, True],
        [True, True],
        [True, True],
    ]


@pytest.mark.parametrize("k", [1, 5])
def test_joint_accuracy_equals_trying_all_combinations(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    logits = {
        "noun": torch.randn(40, 7, generator=generator),
        "verb": torch.randn(40, 6, generator=generator),
    }
    labels = {h: torch.randint(0, x.shape[1], (40,), generator=generator) for h, x in logits.items()}
    got = joint_correct(logits, labels, k).tolist()
    noun, verb = (torch.softmax(x.double(), -1) for x in logits.values())
    for i, right in enumerate(got):
        pairs = sorted(
            itertools.product(range(7), range(6)), key=lambda p: -float(noun[i, p[0]] * verb[i, p[1]])
        )
        assert right == ((int(labels["noun"][i]), int(labels["verb"][i])) in pairs[:k])


def test_bootstrap_interval_is_that_of_the_binomial() -> None:
    correct = np.r_[np.ones(160), np.zeros(40)]
    low, high = bootstrap_interval(correct, [str(i) for i in range(200)], seed=1)
    want = [binom.ppf(q, 200, 0.8) / 200 for q in (0.025, 0.975)]
    assert (low, high) == pytest.approx(want, abs=0.012)
    assert bootstrap_interval(correct, [str(i) for i in range(200)], seed=1) == (low, high)


def test_bootstrap_resamples_whole_videos() -> None:
    # Ten rows of each video agree, so there are 20 independent observations, not 200.
    correct = np.repeat(np.r_[np.ones(16), np.zeros(4)], 10)
    rows = bootstrap_interval(correct, [str(i) for i in range(200)])
    videos = bootstrap_interval(correct, [str(i // 10) for i in range(200)])
    assert videos[1] - videos[0] > 2.5 * (rows[1] - rows[0])


def test_report_of_one_label_a_video() -> None:
    # a: right, right, taken for b. b: right. c does not occur. d: taken for a.
    logits = torch.tensor([[4.0, 0, 0, 0], [3, 1, 0, 0], [1, 2, 0, 0], [0, 5, 0, 1], [2, 1, 0, 1]])
    labels = torch.tensor([0, 0, 0, 1, 3])
    report = single_label_report(logits, labels, ["a", "b", "c", "d"], list("vwxyz"))
    assert report.scores["top1"] == pytest.approx(3 / 5)
    assert "top5" not in report.scores
    assert report.scores["mean_class_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    table = {row["class"]: row for row in report.per_class}
    assert (table["a"]["videos"], table["a"]["taken_for"]) == (3, "b")
    assert table["a"]["precision"] == pytest.approx(2 / 3)
    assert table["c"] == {
        "class": "c",
        "videos": 0,
        "recall": None,
        "precision": None,
        "average_precision": None,
        "taken_for": None,
    }
    assert report.confusion is not None
    assert report.confusion.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    # The one video of b has b's highest score of all.
    assert table["b"]["average_precision"] == pytest.approx(1.0)
    low, high = report.intervals["top1"]
    assert 0 <= low < 0.6 < high <= 1
    names = [name for name, _ in evaluation_figures({"label": report})]
    assert names == ["confusion.png", "reliability.png"]


def test_average_precision_equals_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 7, generator=generator), torch.randint(0, 7, (60,), generator=generator)
    report = single_label_report(logits, labels, list("abcdefg"), [str(i) for i in range(60)])
    scores = torch.softmax(logits, -1).numpy()
    values = []
    for c in range(7):
        hits = (labels.numpy() == c)[np.argsort(-scores[:, c], kind="stable")]
        values.append(float(np.mean(np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1))))
    assert report.scores["map"] == pytest.approx(np.mean(values), abs=1e-5)
    assert report.scores["top5"] > report.scores["top1"]


def test_calibration_error_is_the_gap_of_the_reliability_curve() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        3 * torch.randn(500, 4, generator=generator),
        torch.randint(0, 4, (500,), generator=generator),
    )
    report = single_label_report(logits, labels, list("abcd"), [str(i) for i in range(500)])
    gap = sum(abs(b["confidence"] - b["accuracy"]) * b["count"] for b in report.reliability) / 500
    assert report.scores["ece"] == pytest.approx(gap, abs=1e-6)
    assert sum(b["count"] for b in report.reliability) == 500


def test_reliability_puts_the_edges_into_bins() -> None:
    rows = reliability(np.array([0.0, 0.1, 1.0]), np.array([0, 1, 1]), bins=10)
    assert [(row["count"], row["accuracy"]) for row in rows] == [(2, 0.5), (1, 1.0)]


def test_report_of_several_labels_a_video() -> None:
    logits = torch.tensor([[3.0, -2, 1], [-1, 2, -3], [2, 2, -1], [-2, -1, -2]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    report = multi_label_report(logits, labels, ["a", "b", "c"])
    assert report.scores["map"] == pytest.approx(1.0)  # of a and b; c does not occur
    assert report.per_class[2] == {"class": "c", "videos": 0, "average_precision": None}
    assert report.scores["f1_micro"] == pytest.approx(8 / 9)  # 4 hits, one c too many
    assert report.confusion is None

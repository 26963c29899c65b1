"""Schedules, losses, mixup, metrics and training steps against the authors' own code, one file a case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.vivit import Golden, config_of, golden_config, golden_files
from tubelet.evaluation.metrics import joint_correct, topk_correct
from tubelet.inference.forward import mean_over_views
from tubelet.training.losses import Objective
from tubelet.training.mixup import Mix, apply_mix
from tubelet.training.optim import clip_gradients, make_optimiser, set_lr
from tubelet.training.recipe import OptimiserSettings
from tubelet.training.schedule import Schedule
from tubelet.vivit import ViViTConfig, load_scenic

KINDS = ("scenic_lr", "scenic_losses", "scenic_train")


def kind_of(path: Path) -> str:
    return str(golden_config(path)["kind"])


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in golden_files() if kind_of(p) in KINDS])
def test_golden(path: Path) -> None:
    case = Golden(path)
    CHECKS[case.config["kind"]](case)


def check_schedules(case: Golden) -> None:
    for name, given in case.config["schedules"].items():
        schedule = Schedule(given["base_lr"], given["total_steps"], given["warmup_steps"])
        got = [schedule(int(step)) for step in case[f"{name}/steps"]]
        np.testing.assert_allclose(got, case[f"{name}/lr"], rtol=2e-6, atol=1e-7, err_msg=name)
        assert schedule(0) == 0


def check_losses(case: Golden) -> None:
    config, tensors = case.config, case.arrays
    heads = dict(zip(config["split_names"], config["class_splits"], strict=True))
    logits, labels = (
        dict(zip(heads, tensors[name].split(config["class_splits"], -1), strict=True))
        for name in ("logits", "onehot")
    )
    first = config["split_names"][0]
    ones = torch.ones(len(tensors["logits"]))
    for text, smoothing in (("None", 0.0), ("0.2", 0.2)):
        both = Objective(heads, smoothing)
        one = Objective({first: heads[first]}, smoothing)
        assert_loss(both(logits, labels, tensors["batch_mask"]), tensors[f"multihead_loss_ls{text}"])
        single = {first: logits[first]}, {first: labels[first]}
        assert_loss(one(*single, tensors["batch_mask"]), tensors[f"{first}_softmax_ce_ls{text}"])
        assert_loss(one(*single, ones), tensors[f"{first}_softmax_ce_nomask_ls{text}"])
    check_metrics(tensors, logits, {head: target.argmax(-1) for head, target in labels.items()})
    check_mixup(config["mixup_weight"], tensors)
    check_clipping(tensors)


def assert_loss(got: tuple[torch.Tensor, torch.Tensor], want: torch.Tensor) -> None:
    total, weight = got
    torch.testing.assert_close(total / weight, want, rtol=1e-6, atol=1e-6)


def check_metrics(
    tensors: dict[str, torch.Tensor], logits: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]
) -> None:
    # The reference counts only what the mask lets through.
    mask = tensors["batch_mask"].bool()
    for head, scores in logits.items():
        got = topk_correct(scores, labels[head], 1) & mask
        assert got.int().tolist() == tensors[f"{head}_correct"].tolist()
    assert (joint_correct(logits, labels, 1) & mask).int().tolist() == tensors["joint_correct"].tolist()
    top5 = joint_correct(logits, labels, 5) & mask
    assert top5.int().tolist() == tensors["joint_top5_correct"].flatten().tolist()
    views = mean_over_views(tensors["views"][None])[0]
    torch.testing.assert_close(views, tensors["views_mean_logits"], rtol=1e-6, atol=1e-6)


def check_mixup(weight: float, tensors: dict[str, torch.Tensor]) -> None:
    x = tensors["mixup_in"]
    any_model = ViViTConfig.preset("tiny-8x2-model1", classes=2)
    mixed, targets = apply_mix(Mix(weight), x, {"label": tensors["onehot"]}, torch.ones(len(x)), any_model)
    torch.testing.assert_close(mixed, tensors["mixup_inputs"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(targets["label"], tensors["mixup_labels"], rtol=1e-6, atol=1e-6)


def check_clipping(tensors: dict[str, torch.Tensor]) -> None:
    for limit in (1, 100):
        parameters = {name: torch.nn.Parameter(torch.zeros_like(tensors[f"clip_in/{name}"])) for name in "ab"}
        for name, parameter in parameters.items():
            parameter.grad = tensors[f"clip_in/{name}"].clone()
        norm = clip_gradients(parameters.values(), float(limit))
        torch.testing.assert_close(norm, tensors["grad_norm"], rtol=1e-6, atol=1e-6)
        for name, parameter in parameters.items():
            want = tensors[f"clip_max{limit}/{name}"]
            torch.testing.assert_close(parameter.grad, want, rtol=1e-6, atol=1e-6)


def check_training(case: Golden) -> None:
    config = case.config
    shape = config_of(
        config["model"], list(case["inputs"].shape[1:]), config["num_classes"], config["attention_type"]
    )
    model, final = (load_scenic(case.group(name), shape)[0] for name in ("init", "final"))
    settings = OptimiserSettings(
        lr=config["base_lr"], momentum=config["momentum"], nesterov=config["nesterov"]
    )
    schedule = Schedule(config["base_lr"], config["total_steps"], config["warmup_steps"])
    objective = Objective({"label": config["num_classes"]}, config["label_smoothing"] or 0.0)
    optimiser = make_optimiser(model.train(), settings)
    for step in range(config["steps"]):
        x = case["inputs"][step % len(case["inputs"])]
        labels = case["labels"][step % len(case["labels"])]
        targets = objective.targets({"label": labels})
        total, weight = objective(model(x), targets, torch.ones(len(x)))
        optimiser.zero_grad()
        (total / weight).backward()
        norm = clip_gradients(model.parameters(), config["max_grad_norm"])
        set_lr(optimiser, schedule(step))
        optimiser.step()
        np.testing.assert_allclose((total / weight).item(), case["losses"][step], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(float(norm), case["grad_norms"][step], rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(schedule(step), case["lrs"][step], rtol=1e-6, atol=1e-7)
    for (name, got), want in zip(model.named_parameters(), final.parameters(), strict=True):
        assert (got - want).abs().max().item() < 1e-5, name


CHECKS: dict[str, Callable[[Golden], None]] = {
    "scenic_lr": check_schedules,
    "scenic_losses": check_losses,
    "scenic_train": check_training,
}

"""Recipes: strict, complete, and every one that ships builds its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tubelet.config import UserError, valid_keys
from tubelet.training.initial import Init
from tubelet.training.prepare import model_config
from tubelet.training.recipe import Recipe
from tubelet.training.schedule import Schedule
from tubelet.vivit import ViViT, ViViTConfig, read_pretrained
from tubelet_jobs.recipes import RECIPES, RecipesOptions, command, load_recipe, recipe_names

# What a recipe that takes its size from weights is built on.
IMAGE = ViViTConfig.preset("s-14x1-average", classes=2, frames=2, height=28, width=28, layers=1)
PAPER = [name for name in recipe_names() if not name.startswith(("tiny", "frozen"))]


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe_builds_its_model(name: str) -> None:
    recipe = load_recipe(name)
    labels = {head: ["a", "b", "c"] for head in recipe.head_columns}
    init = Init("an image model", read_pretrained(ViViT(IMAGE))) if name == "frozen" else None
    config = model_config(recipe, labels, init)
    with torch.device("meta"):
        model = ViViT(config)
    assert config.label_heads == dict.fromkeys(recipe.head_columns, 3)
    tokens = recipe.clip_spec(config.tubelet).tokens
    assert tokens == config.tokens
    assert sum(p.numel() for p in model.parameters()) > 10_000


@pytest.mark.parametrize("name", recipe_names())
def test_head_of_the_file_states_command_figure_and_hardware(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text("utf-8")
    head = text[: text.index("\nmodel:")]
    assert f"tubelet train --recipe {name} " in head
    assert all(line.startswith("#") for line in head.splitlines())
    if name in PAPER:
        assert "Figure of the paper" in head
        assert "Hardware:" in head


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_have_the_paper_s_optimisation(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.optimiser.name, recipe.optimiser.momentum, recipe.batch) == ("sgd", 0.9, 64)
    assert (recipe.schedule.shape, recipe.schedule.warmup_epochs) == ("cosine", 2.5)
    assert (recipe.augment.jitter, recipe.augment.flip) == ((0.9, 1.33), 0.5)
    table7 = {"k400": (0.1, 30), "k600": (0.1, 30), "mit": (0.25, 10), "epic": (0.5, 50), "ssv2": (0.5, 35)}
    assert (recipe.optimiser.lr, recipe.epochs) == table7[name.split("-", maxsplit=1)[0]]
    regularised = name.startswith(("epic", "ssv2"))
    assert (recipe.regularisation.droplayer > 0) == (recipe.augment.mixup > 0) == regularised
    assert recipe.augment.colour == (0.0 if regularised else 0.8)


def test_length_of_kinetics_is_that_of_the_paper_s_code() -> None:
    assert load_recipe("k400-b-16x2-model1").length(214834) == (100680, 8390)


def test_shortened_recipe_keeps_the_share_of_its_warm_up() -> None:
    total, warmup = load_recipe("k400-b-16x2-model1", ["max_steps=1200"]).length(214834)
    assert (total, warmup) == (1200, 100)


def test_a_tiny_corpus_still_has_a_step() -> None:
    assert load_recipe("k400-b-16x2-model1").length(10) == (30, 2)


def test_override_finds_the_group() -> None:
    recipe = load_recipe("tiny", ["lr=1e-2", "flip=0.25", "optimiser.momentum=0.5", "workers=2..4"])
    assert (recipe.optimiser.lr, recipe.augment.flip, recipe.optimiser.momentum) == (0.01, 0.25, 0.5)
    assert recipe.world == (2, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchs=3", "unknown setting 'batchs'; did you mean batch"),
        ("augment.flipp=0.5", r"unknown setting 'augment.flipp'; did you mean augment.flip"),
        ("workers=0", "workers: write a number of workers, or a range such as 2..4"),
        ("workers=4..2", "workers: write a number"),
        ("flip=1.5", r"augment.flip: .* less than or equal to 1 \(given 1.5\)"),
        ("evaluation.views=4by2", "write temporal clips x spatial crops, for example 4x3"),
        ("max_steps=0", "max_steps"),
        ("batch=1", "batch=1 is smaller than workers x accumulate"),
    ],
)
def test_bad_setting_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("tiny", [override])


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"no recipe 'tinny'.*tiny"):
        load_recipe("tinny")


def test_file_recipe_and_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ["model_options.layers=3", "seed=7"])
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert load_recipe(path).model_options == {"layers": 3, **load_recipe("tiny").model_options}


def test_length_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "no-length.yaml"
    path.write_text(yaml.safe_dump({"model": "tiny-8x2-model1"}))
    with pytest.raises(UserError, match="max_steps or epochs"):
        load_recipe(path)


def test_resume_names_only_what_alters_the_run() -> None:
    old = load_recipe("tiny")
    new = load_recipe("tiny", ["workers=3", "decode_workers=2", "retain=9", "lr=0.5", "batch=16"])
    assert sorted(new.changed(old)) == ["batch", "optimiser"]


def test_fps_and_stride_exclude_each_other() -> None:
    assert Recipe(max_steps=1, fps=8).clip_spec((2, 16, 16)).stride is None
    with pytest.raises(UserError, match="stride and fps exclude each other"):
        load_recipe("tiny", ["fps=8", "stride=2"])


def test_schedule_of_a_recipe() -> None:
    schedule = Schedule.of(load_recipe("tiny", ["max_steps=100", "warmup_steps=10", "lr=2"]), 50)
    assert [schedule(step) for step in (0, 5, 10)] == [0.0, 1.0, 2.0]
    assert schedule(99) == pytest.approx(0, abs=2e-3)
    floor = Schedule(1.0, 100, 10, final_ratio=0.1)
    assert floor(100) == pytest.approx(0.1)
    assert Schedule(1.0, 100, 10, "constant")(99) == 1.0


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("learning_rate=1", "optimiser.lr"),
        ("batch_size=2", "batch"),
        ("optimiser.learning_rate=1", "optimiser.lr"),
    ],
)
def test_the_usual_names_of_settings_are_known(given: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        load_recipe("tiny", [given])


def test_what_the_usual_names_lead_to_is_there() -> None:
    assert set(Recipe.usual_names.values()) <= set(valid_keys(Recipe))
    assert not set(Recipe.usual_names) & set(valid_keys(Recipe))


def test_settings_that_hang_on_an_overridden_one_follow() -> None:
    """As the head of `tiny` advises, and as `epochs=` is meant."""
    assert load_recipe("tiny", ["stride=4", "size=64", "flip=0.5"]).short_side == round(55 * 64 / 48)
    assert load_recipe("tiny", ["size=64", "short_side=70"]).short_side == 70
    assert load_recipe("tiny", ["epochs=10"]).length(320) == (100, 20)
    assert load_recipe("k400-b-16x2-model2", ["max_steps=10"]).length(10_000)[0] == 10
    with pytest.raises(UserError, match="set one of them"):
        load_recipe("tiny", ["epochs=10", "max_steps=3"])


def test_recipes_are_listed_shown_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    command(RecipesOptions())
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == recipe_names()
    command(RecipesOptions(name="tiny"))
    assert capsys.readouterr().out == (RECIPES / "tiny.yaml").read_text("utf-8")
    command(RecipesOptions(keys=True))
    explained = capsys.readouterr().out
    for key in valid_keys(Recipe):
        assert f"{key}=" in explained or f"{key}: " in explained, key
    with pytest.raises(UserError, match="no recipe 'none'"):
        command(RecipesOptions(name="none"))

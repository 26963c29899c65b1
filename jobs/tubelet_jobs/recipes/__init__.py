"""The recipes that come with tubelet, by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tubelet.config import UserError

if TYPE_CHECKING:
    from tubelet.training.recipe import Recipe

RECIPES = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes that come with tubelet."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_file(name_or_file: str | Path) -> Path:
    """The YAML file of a recipe given by name, or by a file of one's own.

    Raises:
        UserError: no such recipe (lists the known).
    """
    text = str(name_or_file)
    if text in recipe_names():
        return RECIPES / f"{text}.yaml"
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return Path(text)
    raise UserError(f"no recipe {text!r}: give a YAML file, or one of {', '.join(recipe_names())}")


def load_recipe(name_or_file: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by the name of one that ships with tubelet, or from a YAML file.

    Raises:
        UserError: no such recipe (lists the known), an unknown key (names the nearest), a bad value.
    """
    from tubelet.training.recipe import read_recipe

    return read_recipe(recipe_file(name_or_file), overrides)

"""The recipes that come with tubelet, by name; ``tubelet recipes`` shows and explains them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel
from tubelet.config import Option, Settings, UsageError, UserError, nested_settings

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
    raise UsageError(f"no recipe {text!r}: give a YAML file, or one of {', '.join(recipe_names())}")


def load_recipe(name_or_file: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by the name of one that ships with tubelet, or from a YAML file.

    Raises:
        UsageError: no such recipe (lists the known), a wrong override.
        UserError: in the file an unknown key (names the nearest), a bad value.
    """
    from tubelet.training.recipe import read_recipe

    return read_recipe(recipe_file(name_or_file), overrides)


class RecipesOptions(Settings):
    """Which recipe to show."""

    name: Annotated[str | None, Option(argument=True, metavar="NAME|FILE")] = None
    """Recipe to show (default: list all)."""
    keys: Annotated[bool, Option()] = False
    """Explain every setting, with its default."""


def command(config: RecipesOptions) -> None:
    """List the recipes of `tubelet train`, show one as the YAML file that it is, or explain the settings.

    To make one of your own, write it to a file: tubelet recipes tiny > mine.yaml

    Example: tubelet recipes --keys
    """
    if config.name is not None:
        file = recipe_file(config.name)
        try:
            print(file.read_text("utf-8"), end="")
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
    if config.keys:
        from tubelet.training.recipe import Recipe

        for line in explained(Recipe):
            print(line)
    elif config.name is None:
        for name in recipe_names():
            print(f"{name:28} {_title(RECIPES / f'{name}.yaml')}")


def _title(file: Path) -> str:
    """The first sentence of a recipe's head."""
    head = file.read_text("utf-8").partition("\n\n")[0].splitlines()
    text = " ".join(line.lstrip("# ").strip() for line in head if line.startswith("#"))
    return re.split(r"(?<=[a-z)]\.)\s", text)[0]


def explained(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A line for each setting of ``cls``: its name, its default, and the comment that stands by it."""
    comments = _comments(cls)
    for name, field in cls.model_fields.items():
        nested = nested_settings(field.annotation)
        if nested is not None:
            yield f"\n{prefix}{name}: {inspect.getdoc(nested)}"
            yield from explained(nested, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        meaning = comments.get(name, "")
        yield f"{prefix}{name}={shown}" + (f"    # {meaning}" if meaning else "")


def _comments(cls: type[BaseModel]) -> dict[str, str]:
    """What stands behind each setting in the source, or above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        comment = re.fullmatch(r"    # ?(.*)", line)
        setting = re.fullmatch(r"    (\w+): .*?(?:  # (.*))?", line)
        if comment:
            above.append(comment[1])
            continue
        if setting:
            # What is no sentence is a heading of several settings.
            sentences = " ".join(above)
            found[setting[1]] = setting[2] or (sentences if sentences.endswith(".") else "")
        above = []
    return found

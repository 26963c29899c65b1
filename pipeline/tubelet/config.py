"""Strict settings: YAML recipe plus ``key=value`` overrides; unknown keys are refused, naming the nearest.

Every part has one settings class derived from :class:`Settings`; a value is checked where the object is made.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tubelet.redaction import redacted

S = TypeVar("S", bound="Settings")

_FEW_KEYS = 12


class UserError(ValueError):
    """Something the user can mend. The message is one or two lines: what is wrong, and what to do.

    Passwords and signatures in it are cut.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(item) if isinstance(item, str) else item for item in args))


class UsageError(UserError):
    """What stands on the command line is wrong: it ends with status 2, and the same line fails everywhere."""


@dataclass(frozen=True)
class Option:
    """Marks a setting that is an option of the command line: ``Annotated[str, Option(metavar="GLOB")]``.

    Its type, default, help (the docstring below it) and checks are the setting's own.

    Attributes:
        flag: its name there (default: the setting's, with dashes).
        metavar: stands for the value in the help.
        envvar: environment variable that gives it where the command line does not.
        argument: it is given by its place, without a name.
        ranged: its bounds (``ge``, ``le``) are part of the usage: status 2, not 1, for a number beyond them.
    """

    flag: str | None = None
    metavar: str | None = None
    envvar: str | None = None
    argument: bool = False
    ranged: bool = False


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused, defaults checked too.

    A docstring below a setting is its description.
    """

    usual_names: ClassVar[Mapping[str, str]] = {}
    """What other tools call a setting -> its name here; for the error that an unknown one gets."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


def usable_cores() -> int:
    """Cores that this thread may run on; on systems that cannot say, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_settings(cls: type[S], source: Mapping[str, Any], overrides: Iterable[str] = ()) -> S:
    """Build ``cls`` from ``source`` and ``key=value`` ``overrides`` (dots reach into nested settings).

    Raises:
        UserError: an unknown key (names the nearest valid ones) or a bad value.
        UsageError: such a key or value in an override, or an override without ``=``.
    """
    data, given = _copy(source), []
    for item in overrides:
        key, sep, text = item.partition("=")
        if not sep or not key:
            raise UsageError(f"{item!r} is not a setting: write key=value, for example batch=8")
        given.append(key)
        _assign(data, key.split("."), yaml.safe_load(text) if text else None)
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        wrong = [".".join(str(part) for part in issue["loc"]) for issue in error.errors()]
        overridden = any(key == one or key.startswith(f"{one}.") for key in wrong for one in given)
        raise (UsageError if overridden else UserError)(_explain(cls, error)) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} must be a YAML mapping of settings")
    return data


def valid_keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of all settings of ``cls``, nested ones with dots."""
    keys: list[str] = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        nested = nested_settings(field.annotation)
        if nested is not None:
            keys += valid_keys(nested, f"{prefix}{name}.")
    return keys


def _usual_name(cls: type[BaseModel], key: str) -> str | None:
    known = cls.usual_names if issubclass(cls, Settings) else {}
    return known.get(key.rpartition(".")[2].replace("-", "_").lower())


def nested_settings(annotation: Any) -> type[BaseModel] | None:
    """The settings that a field of this type holds, itself or as an alternative to null; None for a value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _copy(source: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in source.items()}


def _assign(data: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        child = data.get(part)
        if not isinstance(child, dict):
            child = {}
            data[part] = child
        data = child
    data[path[-1]] = value


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    parts = []
    for issue in error.errors():
        key = ".".join(str(p) for p in issue["loc"])
        if issue["type"] == "extra_forbidden":
            valid = valid_keys(cls)
            usual = _usual_name(cls, key)
            near = [usual] if usual else difflib.get_close_matches(key, valid, n=3, cutoff=0.5)
            # Of a hundred settings that all are far from it, nobody reads the names.
            near = near or (sorted(valid) if len(valid) <= _FEW_KEYS else [])
            hint = f"did you mean {', '.join(near)}?" if near else "see `tubelet recipes --keys`"
            parts.append(f"unknown setting {key!r}; {hint}")
        else:
            given = issue.get("input")
            shown = "" if isinstance(given, dict) or issue["type"] == "missing" else f" (given {given!r})"
            message = issue["msg"].removeprefix("Value error, ")
            parts.append(f"{key}: {message}{shown}" if key else message)
    return "; ".join(parts)

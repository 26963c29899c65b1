"""The command line of a job, derived from the settings that it fills.

A setting with :class:`tubelet.config.Option` among its annotations is an option; nested settings give theirs
as well. What pydantic checks is checked once, where the settings are made.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo
from tubelet.config import Option, Settings, load_settings

S = TypeVar("S", bound=Settings)

# What typer converts by itself; anything else is text that the settings read.
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Parameter:
    """A setting on the command line; ``path``: its name, after those of the settings that hold it."""

    path: tuple[str, ...]
    field: FieldInfo
    option: Option

    @property
    def name(self) -> str:
        """What the parsed value is called."""
        return self.path[-1]

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """It must be given."""
        return self.field.is_required()

    @property
    def default(self) -> Any:
        """As typer shows and passes it; None where the settings find one themselves."""
        value = None if self.field.default_factory else self.field.default
        return None if value == () else _text(value) if isinstance(value, tuple) else value

    @property
    def kind(self) -> Any:
        """The type that typer converts to."""
        kind = _without_none(self.field.annotation)
        if get_origin(kind) is list or (get_origin(kind) is tuple and Ellipsis in get_args(kind)):
            return list[str]
        return kind if kind in _PLAIN else str

    def signature(self) -> inspect.Parameter:
        """The parameter as typer reads it off a function."""
        option, text = self.option, (self.field.description or "").replace("``", "`")
        metavar, help_text = option.metavar or _choices(self.field.annotation), " ".join(text.split())
        info: Any
        if option.argument:
            info = typer.Argument(metavar=metavar, help=help_text or None, show_default=bool(self.default))
        else:
            bounds = self._bounds() if option.ranged else {}
            info = typer.Option(
                self.flag, metavar=metavar, help=help_text or None, envvar=option.envvar, **bounds
            )
        kind = self.kind if self.required else self.kind | None if self.default is None else self.kind
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if self.required else self.default,
            annotation=Annotated[kind, info],
        )

    def _bounds(self) -> dict[str, Any]:
        """The least and the greatest value that the setting takes, as typer calls them."""
        found = (*self.field.metadata, *getattr(self.field.annotation, "__metadata__", ()))
        for kind in get_args(self.field.annotation):
            found += getattr(kind, "__metadata__", ())
        limits = [x for item in found for x in (item.metadata if isinstance(item, FieldInfo) else [item])]
        least = [limit.ge for limit in limits if isinstance(limit, Ge)]
        most = [limit.le for limit in limits if isinstance(limit, Le)]
        return ({"min": least[0]} if least else {}) | ({"max": most[0]} if most else {})


def parameters(cls: type[Settings]) -> list[Parameter]:
    """What of ``cls`` is on the command line, in the order of its settings."""
    return list(_parameters(cls, ()))


def _parameters(cls: type[Settings], path: tuple[str, ...]) -> Iterator[Parameter]:
    for name, field in cls.model_fields.items():
        option = next((item for item in field.metadata if isinstance(item, Option)), None)
        nested = _without_none(field.annotation)
        if option is not None:
            yield Parameter((*path, name), field, option)
        elif isinstance(nested, type) and issubclass(nested, Settings):
            yield from _parameters(nested, (*path, name))


def settings_class(job: Callable[..., None]) -> type[Settings]:
    """The settings that ``job``, a function of one parameter, takes."""
    (kind,) = (hint for name, hint in get_type_hints(job).items() if name != "return")
    found: type[Settings] = kind
    return found


def typer_function(job: Callable[[S], None], cls: type[S]) -> Callable[..., None]:
    """The function that typer makes a command of: it takes the options of ``cls``, which ``job`` takes.

    When called, it raises :class:`tubelet.config.UserError` where the settings refuse the values.
    """
    params = parameters(cls)

    def command(**values: Any) -> None:
        given: dict[str, Any] = {}
        for param in params:
            value = values[param.name]
            if value is not None and (param.required or value != param.default):
                _put(given, param.path, tuple(value) if isinstance(value, list) else value)
        job(load_settings(cls, given))

    signature = [param.signature() for param in params]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {param.name: param.annotation for param in signature}
    command.__doc__ = job.__doc__
    return command


def command_line(job: str, settings: Settings) -> str:
    """The command that gives ``settings``, to show or to paste into a shell; defaults are left out."""
    places, flags = [], []
    for param in parameters(type(settings)):
        value: Any = settings
        for name in param.path:
            value = getattr(value, name)
        several = param.kind == list[str]
        values = [_text(item) for item in value] if several else [_text(value)]
        if not param.required and (value is None or value == () or values == [_text(param.default)]):
            continue
        if param.option.argument:
            places += values
        elif value is True:
            flags.append(param.flag)
        else:
            flags += [word for item in values for word in (param.flag, item)]
    return shlex.join(["tubelet", job, *places, *flags])


def _text(value: Any) -> str:
    """A value as people write it: views are ``4x3``."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        data = data.setdefault(name, {})
    data[path[-1]] = value


def _without_none(kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        return _without_none(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        kinds = [item for item in get_args(kind) if item is not NoneType]
        return _without_none(kinds[0]) if len(kinds) == 1 else kind
    return kind


def _choices(kind: Any) -> str | None:
    kind = _without_none(kind)
    return "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else None

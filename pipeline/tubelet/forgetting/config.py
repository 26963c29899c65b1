"""What ``tubelet forget`` takes out, and of what."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from tubelet.config import Option, Settings
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class ForgetConfig(Settings):
    """Which videos, and where they are to be forgotten."""

    uris: Annotated[Names, Option(argument=True, metavar="URI"), Field(min_length=1)]
    """The videos: uri, path or key, as the manifest has them."""
    manifest: Annotated[str, Option()]
    """The manifest they are in."""
    out: Annotated[Names, Option(metavar="OUTPUT")] = ()
    """What label, embed, prepare or train made of it; may be repeated."""
    tracking_uri: Annotated[str | None, Option(envvar="MLFLOW_TRACKING_URI")] = None
    """MLflow server that is asked for models (default: sqlite:///mlflow.db)."""
    storage: StorageOptions = DEFAULT_OPTIONS
    """How to reach the stores."""

"""What runs and registered models are called in MLflow, and who starts them."""

from __future__ import annotations

import getpass
import re
from datetime import datetime

from tubelet.config import UserError


def model_name(text: str) -> str:
    """``text`` as MLflow takes it as the name of a model: what it refuses becomes ``-``.

    Raises:
        UserError: nothing of it is left.
    """
    name = re.sub(r"[/:.%\"'\s]+", "-", text).strip("-")
    if not name:
        raise UserError(f"{text!r} is no name for a model in MLflow: use letters, digits, - and _")
    return name


def run_name(given: str | None, *parts: str) -> str:
    """The name of a run: as ``given``, or what it is about and when it began, here and now."""
    return given or " ".join([*parts, datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")])


def user() -> str:
    """Who runs this process; empty where the system has no name for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return ""

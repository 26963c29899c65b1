"""What Arrow says of a file that was cut off, or whose bits were flipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from tubelet.config import UserError


@contextmanager
def damage_named(say: Callable[[str], str]) -> Iterator[None]:
    """Arrow's complaints about a file, and not what a store says of itself, in words that help.

    Those come as errors without a number, unlike those of the system.

    Args:
        say: makes the message of a short reason.

    Raises:
        UserError: the file is damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(say(reason)) from error

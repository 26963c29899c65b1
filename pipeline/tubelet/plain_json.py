"""JSON that every reader takes: it knows neither NaN nor infinity, nor numbers that are not Python's."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers that are none are null, half floats are floats, tuples lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """``value`` as JSON text."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)

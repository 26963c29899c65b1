"""Every object labelled exactly once, and a page to look at what came out.

The job is :class:`LabelJob` with its :class:`LabelConfig`; what lies at the root of its output is kept
correct at every moment by the sink (``sink.py`` says how).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.labelling.job import LabelConfig, LabelJob
    from pipeline.labelling.report import Summary
    from pipeline.labelling.windows import Windows

__all__ = ["LabelConfig", "LabelJob", "Summary", "Windows"]

_HOMES = {"LabelConfig": "job", "LabelJob": "job", "Summary": "report", "Windows": "windows"}


def __getattr__(name: str) -> Any:
    # Only on use: tasks that read the plan start without torch, MLflow and matplotlib.
    if name in _HOMES:
        return getattr(import_module(f"pipeline.labelling.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

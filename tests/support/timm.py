"""timm without torchvision.

timm imports torchvision for a few names, and no torchvision fits the pinned CPU build of torch (its compiled
operators do not load). Where it is missing, stand-ins take those names while timm is imported; nothing of
torchvision computes anything in a ViT.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """A module with whatever class is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(
            name, (), {"BILINEAR": 1, "BICUBIC": 2, "NEAREST": 3, "LANCZOS": 4, "BOX": 5, "HAMMING": 6}
        )


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        mine = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if mine else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def load_timm() -> Any:
    """The package timm."""
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        return importlib.import_module("timm")
    finally:
        # transformers asks whether torchvision is there, and must not find this one.
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]

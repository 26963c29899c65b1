"""What is known of the licence of weights, for people who pass on what was trained from them."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

_UNKNOWN = "not stated where they lie: look it up before you pass the model on"
_IN_README = re.compile(r"\A---\n.*?^license:\s*(\S+)\s*$.*?^---$", re.MULTILINE | re.DOTALL)


def licence_of(source: str) -> str:
    """The licence of weights as ``--init`` names them: what their source says, or that it says nothing."""
    # A hub that does not answer, or a package that is missing: then nothing is known.
    with suppress(Exception):
        found = _of_timm(source[5:]) if source.startswith("timm:") else _of_folder(_folder(source))
        if found:
            return found
    return _UNKNOWN


def _of_timm(name: str) -> str | None:
    from tubelet.vivit.timm_models import timm_package

    config: Any = timm_package().get_pretrained_cfg(name)
    return str(config.license) if config is not None and config.license else None


def _folder(source: str) -> Path | None:
    """Where the source's files lie on this machine; a hub's cache is looked into, nothing is fetched."""
    if source.startswith("hf:"):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source[3:], "README.md")
        return Path(found).parent if isinstance(found, str) else None
    path = Path(source)
    # What lies beside a single file may be of anything.
    return path if path.is_dir() else None


def _of_folder(folder: Path | None) -> str | None:
    """What the README's front matter says, as hubs have it, or the title of the licence's own file."""
    if folder is None:
        return None
    readme = folder / "README.md"
    if readme.is_file():
        found = _IN_README.search(readme.read_text("utf-8", "replace"))
        if found:
            return found[1]
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        file = folder / name
        if file.is_file():
            lines = file.read_text("utf-8", "replace").split("\n")
            return next((line.strip(" #") for line in lines if line.strip(" #")), None)
    return None

"""Videos that are to stay out of a manifest: their keys, and nothing else that could name them."""

from __future__ import annotations

import json
from collections.abc import Collection

from tubelet import storage
from tubelet.corpus.beside import beside
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions

_NAME = "forgotten.json"


def forgotten(out: str, options: StorageOptions = DEFAULT_OPTIONS) -> frozenset[str]:
    """Keys that an index of the manifest ``out`` passes over."""
    try:
        return frozenset(json.loads(storage.read_bytes(beside(out, _NAME), options))["keys"])
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def forget_keys(out: str, keys: Collection[str], options: StorageOptions = DEFAULT_OPTIONS) -> None:
    """Add to :func:`forgotten`."""
    known = sorted({*forgotten(out, options), *keys})
    storage.write_bytes(beside(out, _NAME), json.dumps({"keys": known}).encode(), options)

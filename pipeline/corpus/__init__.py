"""Which videos exist: storage, listing, labels, splits, the manifest.

``storage`` reads and writes local folders, ``s3://`` and ``gs://`` alike; ``manifest`` is the table that all
other parts work from; ``lock`` keeps two jobs off one output; ``index`` makes the manifest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.corpus.fingerprint import fingerprint
    from pipeline.corpus.index import IndexConfig, IndexSummary, index_corpus
    from pipeline.corpus.lock import LockLostError, OutputLock
    from pipeline.corpus.manifest import SCHEMA, Manifest, key_of, read_manifest, write_manifest
    from pipeline.corpus.opener import ObjectOpener
    from pipeline.corpus.selection import class_names, select
    from pipeline.corpus.storage import ObjectChangedError, ObjectInfo, StorageOptions, list_objects

__all__ = [
    "SCHEMA",
    "IndexConfig",
    "IndexSummary",
    "LockLostError",
    "Manifest",
    "ObjectChangedError",
    "ObjectInfo",
    "ObjectOpener",
    "OutputLock",
    "StorageOptions",
    "class_names",
    "fingerprint",
    "index_corpus",
    "key_of",
    "list_objects",
    "read_manifest",
    "select",
    "write_manifest",
]

_HOMES = {
    "fingerprint": ("fingerprint",),
    "index": ("IndexConfig", "IndexSummary", "index_corpus"),
    "lock": ("LockLostError", "OutputLock"),
    "opener": ("ObjectOpener",),
    "selection": ("class_names", "select"),
    "storage": ("ObjectChangedError", "ObjectInfo", "StorageOptions", "list_objects"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported when asked for: a decode process that opens an object must not pay for PyArrow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.corpus.{_HOME_OF.get(name, 'manifest')}"), name)

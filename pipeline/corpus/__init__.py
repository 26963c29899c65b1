"""Which videos exist: storage, listing, labels, splits, the manifest.

``storage`` reads and writes local folders, ``s3://`` and ``gs://`` alike; ``manifest`` is the table all other
parts work from; ``lock`` keeps two jobs off one output; ``index`` makes the manifest.
"""

from __future__ import annotations

from pipeline.corpus.lock import LockLostError, OutputLock
from pipeline.corpus.manifest import (
    SCHEMA,
    Manifest,
    class_names,
    fingerprint,
    key_of,
    read_manifest,
    select,
    write_manifest,
)
from pipeline.corpus.opener import ObjectOpener
from pipeline.corpus.storage import ObjectChangedError, ObjectInfo, StorageOptions, list_objects

__all__ = [
    "SCHEMA",
    "LockLostError",
    "Manifest",
    "ObjectChangedError",
    "ObjectInfo",
    "ObjectOpener",
    "OutputLock",
    "StorageOptions",
    "class_names",
    "fingerprint",
    "key_of",
    "list_objects",
    "read_manifest",
    "select",
    "write_manifest",
]

"""Whether a checkpoint is whole: its marker, written last, holds the sizes and digests of its files.

A marker alone is not enough: a crash of the machine can keep it and lose the content of files written before
it, a copy that broke off may have brought it first, and disks lose bits.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tubelet import storage
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions
from tubelet.tracking.registry import MODEL_FILE

MARKER = "COMPLETE"
_CHUNK_BYTES = 8 << 20


def marker_of(step: int, folder: Path) -> bytes:
    """The marker's content for the files of a local ``folder``."""
    files = sorted(folder.iterdir())
    sizes = {file.name: file.stat().st_size for file in files}
    digests = {file.name: digest_of(str(file)) for file in files}
    return json.dumps({"step": step, "files": sizes, "sha256": digests}).encode()


def what_is_torn(
    folder: str, options: StorageOptions = DEFAULT_OPTIONS, *, digests: bool = True
) -> str | None:
    """What is not as the marker of a checkpoint says, in words; None where it is whole.

    Args:
        folder: the checkpoint, on any store.
        options: how to reach the store.
        digests: also read every file and compare its digest, where the marker has one (those of earlier
            versions hold sizes only).
    """
    try:
        text = storage.read_bytes(storage.join(folder, MARKER), options)
    except FileNotFoundError:
        return f"there is no {MARKER}"
    marker = _parsed(text)
    sizes, expected = marker or ({}, {})
    for name in sizes or (MODEL_FILE,):
        info = storage.stat(storage.join(folder, name), options)
        if info is None:
            return f"{name} is missing"
        size = sizes.get(name)
        if size is not None and info.size_bytes != size:
            return f"{name} has {info.size_bytes} of {size} bytes"
    if marker is None:
        return f"{MARKER} is cut"
    for name, digest in expected.items() if digests else ():
        if digest_of(storage.join(folder, name), options) != digest:
            return f"{name} does not hold what was written"
    return None


def digest_of(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> str:
    """SHA-256 of an object's content, in hexadecimal."""
    if not storage.is_remote(uri):
        with Path(storage.normalise_uri(uri)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    filesystem, path = storage.filesystem(uri, options)
    found = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _parsed(text: bytes) -> tuple[dict[str, int], dict[str, str]] | None:
    """Sizes and digests that a marker holds (earlier versions' may lack either); None where it is cut."""
    try:
        marker = json.loads(text)
        return dict(marker.get("files", {})), dict(marker.get("sha256", {}))
    except (ValueError, AttributeError, TypeError):
        return None

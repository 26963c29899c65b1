"""Marks duplicates in a manifest: the column ``duplicate_of``, and, if asked, one split for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.corpus.digests import digests
from tubelet.corpus.duplicate_hashes import Fingerprints, How
from tubelet.corpus.duplicates import Videos, originals
from tubelet.corpus.manifest import ManifestSlices, made_from, read_manifest
from tubelet.corpus.probing import Prober
from tubelet.corpus.publication import manifest_writer
from tubelet.corpus.split_names import normalise_split
from tubelet.storage import StorageOptions
from tubelet.storage.pinned import retry_if_changed
from tubelet.video import Status

COLUMN = "duplicate_of"
_NEEDED = ["key", "segment", "uri", "path", "etag", "size", "status", "split", "duration_s", "indexed_at"]

Row = dict[str, Any]


@dataclass
class Marked:
    """What was found.

    Attributes:
        duplicates: videos that show what another one shows.
        by_split: videos by split, now.
        warnings: what the user should know.
    """

    duplicates: int = 0
    by_split: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def mark_duplicates(out: str, how: How, prober: Prober, *, together: bool, options: StorageOptions) -> Marked:
    """Find the duplicates of the manifest at ``out``, and write it with them.

    The first of several, by the time it was first indexed and then by its path, is the original.

    Args:
        out: the manifest.
        how: by content, or by what the frames show as well.
        prober: reads the videos.
        together: duplicates get the split of their original.
        options: how to reach the videos, and whether the manifest has a single writer.
    """
    rows = _videos(out)
    fingerprints = Fingerprints(out, options)
    fingerprints.look(rows, how, prober)
    digest = np.array([fingerprints.digest(row) or "" for row in rows], object)
    contents = np.where(digest == "", 0, digests(digest.tolist())) if rows else np.zeros(0, np.uint64)
    durations_s = np.array([np.nan if row["duration_s"] is None else row["duration_s"] for row in rows])
    hashes = fingerprints.hashes(rows) if how == "near" else None
    first = originals(Videos(contents.astype(np.uint64), durations_s.astype(np.float64), hashes)).tolist()
    original = {row["key"]: rows[number] for row, number in zip(rows, first, strict=True)}
    marked = Marked(duplicates=sum(number != place for place, number in enumerate(first)))
    if fingerprints.unread:
        marked.warnings.append(f"{fingerprints.unread} videos could not be looked at for duplicates")
    _write(out, original, options.for_writing(), together=together)
    if not together:
        marked.warnings += _torn(rows, original)
    splits = {row["key"]: (original[row["key"]] if together else row)["split"] for row in rows}
    marked.by_split = dict(Counter(split for split in splits.values() if split is not None))
    return marked


def _videos(out: str) -> list[Row]:
    """One row per usable video, originals before their duplicates."""
    table = read_manifest(out, _NEEDED)
    table = table.filter(pc.equal(table["status"], str(Status.OK)))
    order = [("indexed_at", "ascending"), ("path", "ascending"), ("segment", "ascending")]
    found: dict[str, Row] = {}
    for row in table.sort_by(order).to_pylist():
        found.setdefault(row["key"], row)
    return list(found.values())


def _write(out: str, original: dict[str, Row], options: StorageOptions, *, together: bool) -> None:
    def write_again() -> None:
        slices, made = ManifestSlices.open(out), made_from(out)
        tables = iter(slices)
        first = next(tables)
        kept = [one for one in first.schema if one.name != COLUMN]
        schema = pa.schema([*kept, pa.field(COLUMN, pa.string())])
        with manifest_writer(out, schema, made_from=made, options=options) as write:
            for table in (first, *tables):
                rows = _marked(table.to_pylist(), original, together=together)
                write(pa.Table.from_pylist(list(rows), schema=schema))

    retry_if_changed(write_again)


def _marked(rows: list[Row], original: dict[str, Row], *, together: bool) -> Iterator[Row]:
    for row in rows:
        one = original.get(row["key"])
        other = one is not None and one["key"] != row["key"]
        row[COLUMN] = one["key"] if one is not None and other else None
        if one is not None and other and together:
            row["split"] = one["split"]
        yield row


def _torn(rows: list[Row], original: dict[str, Row]) -> list[str]:
    """A warning where one video is trained on, and tested on as well."""
    torn = []
    for row in rows:
        one = original[row["key"]]
        sides = {normalise_split(split) for split in (row["split"], one["split"]) if split is not None}
        if "train" in sides and sides & {"test", "val"}:
            torn.append((row, one))
    if not torn:
        return []
    two, one = torn[0]
    return [
        f"{len(torn)} duplicates lie on both sides of the splits, for example {two['path']} ({two['split']})"
        f" and {one['path']} ({one['split']}): --split together:SPEC keeps them on one side"
    ]

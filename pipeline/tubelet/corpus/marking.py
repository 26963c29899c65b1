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
from tubelet.corpus.duplicate_hashes import Fingerprints, How, Look
from tubelet.corpus.duplicates import Videos, originals
from tubelet.corpus.manifest import ManifestSlices, read_manifest
from tubelet.corpus.split_names import normalise_split
from tubelet.storage import StorageOptions
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


def marked_tables(
    unmarked: str, out: str, how: How, look: Look, *, together: bool, options: StorageOptions
) -> tuple[Marked, Iterator[pa.Table]]:
    """Find the duplicates among the rows of a manifest; what was found, and the tables with them marked.

    The first of several, by the time it was first indexed and then by its path, is the original.

    Args:
        unmarked: the manifest; its rows are read twice, and not kept in memory.
        out: where the marked one will be, beside which fingerprints are kept.
        how: by content, or by what the frames show as well.
        look: reads the videos.
        together: duplicates get the split of their original.
        options: how to reach the videos, and whether the manifest has a single writer.
    """
    rows = _videos(unmarked)
    fingerprints = Fingerprints(out, options)
    fingerprints.look(rows, how, look)
    digest = np.array([fingerprints.digest(row) or "" for row in rows], object)
    contents = np.where(digest == "", 0, digests(digest.tolist())) if rows else np.zeros(0, np.uint64)
    durations_s = np.array([np.nan if row["duration_s"] is None else row["duration_s"] for row in rows])
    hashes = fingerprints.hashes(rows) if how == "near" else None
    first = originals(Videos(contents.astype(np.uint64), durations_s.astype(np.float64), hashes)).tolist()
    original = {row["key"]: rows[number] for row, number in zip(rows, first, strict=True)}
    marked = Marked(duplicates=sum(number != place for place, number in enumerate(first)))
    if fingerprints.unread:
        marked.warnings.append(f"{fingerprints.unread} videos could not be looked at for duplicates")
    if not together:
        marked.warnings += _torn(rows, original)
    splits = {row["key"]: (original[row["key"]] if together else row)["split"] for row in rows}
    marked.by_split = dict(Counter(split for split in splits.values() if split is not None))
    return marked, _marked_tables(unmarked, original, together=together)


def marked_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of a manifest whose duplicates are marked."""
    kept = [one for one in schema if one.name != COLUMN]
    return pa.schema([*kept, pa.field(COLUMN, pa.string())])


def _videos(out: str) -> list[Row]:
    """One row per usable video, originals before their duplicates."""
    table = read_manifest(out, _NEEDED)
    table = table.filter(pc.equal(table["status"], str(Status.OK)))
    order = [("indexed_at", "ascending"), ("path", "ascending"), ("segment", "ascending")]
    found: dict[str, Row] = {}
    for row in table.sort_by(order).to_pylist():
        found.setdefault(row["key"], row)
    return list(found.values())


def _marked_tables(unmarked: str, original: dict[str, Row], *, together: bool) -> Iterator[pa.Table]:
    originals_key = {key: one["key"] for key, one in original.items() if one["key"] != key}
    split_of = {key: original[key]["split"] for key in originals_key} if together else {}
    for table in ManifestSlices.open(unmarked):
        keys = table["key"].to_pylist()
        schema = marked_schema(table.schema)
        columns = {name: table[name] for name in table.column_names}
        columns[COLUMN] = pa.array([originals_key.get(key) for key in keys], pa.string())
        if together:
            splits = zip(keys, table["split"].to_pylist(), strict=True)
            columns["split"] = pa.array([split_of.get(key, split) for key, split in splits], pa.string())
        yield pa.table(columns, schema=schema)


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

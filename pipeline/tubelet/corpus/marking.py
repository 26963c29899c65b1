"""Marks duplicates in a manifest: the column ``duplicate_of``, and, if asked, one split for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.corpus.duplicate_hashes import Fingerprints, How, Look
from tubelet.corpus.duplicates import Videos, originals
from tubelet.corpus.manifest import ManifestSlices
from tubelet.corpus.split_names import normalise_split
from tubelet.corpus.unique_videos import Ints, UniqueVideos
from tubelet.storage import StorageOptions

COLUMN = "duplicate_of"
# The sum tells one of each from any other two.
_TRAIN, _TEST = 1, 2
_SIDES = {"train": _TRAIN, "test": _TEST, "val": _TEST}


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
        unmarked: the manifest; its rows are read a few times, and not kept in memory.
        out: where the marked one will be, beside which fingerprints are kept.
        how: by content, or by what the frames show as well.
        look: reads the videos.
        together: duplicates get the split of their original.
        options: how to reach the videos, and whether the manifest has a single writer.
    """
    videos = UniqueVideos(unmarked)
    fingerprints = Fingerprints(out, videos, options)
    fingerprints.look(how, look)
    hashes = fingerprints.hashes() if how == "near" else None
    first = originals(Videos(fingerprints.contents(), videos.durations_s, hashes))
    marked = Marked(duplicates=int((first != np.arange(len(first))).sum()))
    if fingerprints.unread:
        marked.warnings.append(f"{fingerprints.unread} videos could not be looked at for duplicates")
    splits = videos.column("split")
    if together:
        splits = splits.take(pa.array(first))
    else:
        marked.warnings += _torn(videos, first)
    counts = pc.value_counts(splits.drop_null()).to_pylist()
    marked.by_split = {one["values"]: one["counts"] for one in counts}
    return marked, _marked_tables(unmarked, videos, first, together=together)


def marked_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of a manifest whose duplicates are marked."""
    kept = [one for one in schema if one.name != COLUMN]
    return pa.schema([*kept, pa.field(COLUMN, pa.string())])


def _marked_tables(unmarked: str, videos: UniqueVideos, first: Ints, *, together: bool) -> Iterator[pa.Table]:
    keys, splits = videos.column("key"), videos.column("split")
    start = 0
    for table in ManifestSlices.open(unmarked):
        numbers = videos.of_row[start : start + table.num_rows]
        start += table.num_rows
        original = numbers.copy()
        original[numbers >= 0] = first[numbers[numbers >= 0]]
        copied = original != numbers
        which = pa.array(original, mask=~copied)
        columns = {name: table[name] for name in table.column_names}
        columns[COLUMN] = keys.take(which).cast(pa.string())
        if together:
            columns["split"] = pc.if_else(pa.array(copied), splits.take(which), table["split"])
        yield pa.table(columns, schema=marked_schema(table.schema))


def _torn(videos: UniqueVideos, first: Ints) -> list[str]:
    """A warning where one video is trained on, and tested on as well."""
    sides = _sides(videos.column("split"))
    torn = np.flatnonzero(sides + sides[first] == _TRAIN + _TEST)
    if not len(torn):
        return []
    paths, splits = videos.column("path"), videos.column("split")
    two, one = (f"{paths[place]} ({splits[place]})" for place in (int(torn[0]), int(first[torn[0]])))
    return [
        f"{len(torn)} duplicates lie on both sides of the splits, for example {two}"
        f" and {one}: --split together:SPEC keeps them on one side"
    ]


def _sides(split: pa.Array) -> npt.NDArray[np.int64]:
    """Whether each is trained on, or tested."""
    encoded = split.dictionary_encode()
    names = [normalise_split(name) for name in encoded.dictionary.to_pylist()]
    sides = np.array([*(_SIDES.get(name, 0) for name in names), 0], np.int64)
    found: npt.NDArray[np.int64] = sides[encoded.indices.fill_null(len(names)).to_numpy()]
    return found

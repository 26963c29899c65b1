"""The training examples of a manifest: which videos, which targets, which label names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.clips.decoder import REFERENCE
from tubelet.config import UserError
from tubelet.corpus.fingerprint import fingerprint
from tubelet.corpus.selection import class_names, select

Targets = dict[str, npt.NDArray[Any]]

# What a choice among models needs to know of a video, besides what the decode stage does.
ABOUT = ("key", "segment", "etag", "uri", "group", "frames", "width", "height")

# Columns of a manifest that training has no use for; the keyframes alone are larger than all it has.
NOT_NEEDED = frozenset(
    {"error_code", "error", "attempts", "codec", "rotation", "fps", "vfr", "start_s", "keyframes_s"}
    | {"path", "duration_s", "corrected_at", "indexed_at"}
)


@dataclass(frozen=True)
class Examples:
    """Labelled videos of one split, ordered by key.

    ``table`` has the columns that the decode stage needs. ``targets`` are, for each head, int64 ``(n,)``
    class numbers, or uint8 ``(n, classes)`` where an example has several labels. ``labels``: the names of
    each head's classes. ``fingerprint`` names the content of these rows. ``about``: what else the manifest
    says of them (:data:`ABOUT`).
    """

    table: pa.Table
    targets: Targets
    labels: dict[str, list[str]]
    fingerprint: str
    about: pa.Table

    def __len__(self) -> int:
        return len(self.table)


def load_examples(
    manifest: pa.Table,
    head_columns: Mapping[str, str],
    *,
    multilabel: bool = False,
    split: str = "train",
    labels: Mapping[str, list[str]] | None = None,
) -> Examples:
    """The videos of ``split`` that have a label in every column of ``head_columns`` (head -> column).

    ``labels`` given: these are the classes, and videos of others are left out.

    Raises:
        UserError: nothing is labelled, the split is empty, a head has one class only.
    """
    rows = manifest
    for column in head_columns.values():
        rows = select(rows, split, labelled=True, head=column, required=True, ordered=True)
    for head, names in (labels or {}).items():
        rows = _of_classes(rows, head_columns[head], names)
    own = {
        head: labels[head] if labels else class_names(rows, column, at_least=2)
        for head, column in head_columns.items()
    }
    targets = {head: _targets(rows[column], own[head], multilabel) for head, column in head_columns.items()}
    rows = rows.combine_chunks()  # both share the columns that they have in common
    reference, about = rows.select(REFERENCE), rows.select(ABOUT)
    return Examples(reference, targets, own, fingerprint(rows), about)


def _of_classes(rows: pa.Table, column: str, names: list[str]) -> pa.Table:
    if pa.types.is_list(rows[column].type):
        return rows  # of several labels, the unknown ones are not counted
    return rows.filter(pc.is_in(rows[column], pa.array(names, pa.string())))


def _targets(column: pa.ChunkedArray, names: list[str], multilabel: bool) -> npt.NDArray[Any]:
    number = {name: i for i, name in enumerate(names)}
    many = pa.types.is_list(column.type)
    if many and not multilabel:
        raise UserError("a video of this manifest may have several labels: set multilabel=true")
    if not multilabel:
        found = pc.index_in(column, pa.array(names, pa.string()))
        return np.asarray(found.to_numpy(), np.int64)
    hot = np.zeros((len(column), len(names)), np.uint8)
    for row, value in enumerate(column.to_pylist()):
        for one in value if many else [value]:
            if one in number:
                hot[row, number[one]] = 1
    return hot

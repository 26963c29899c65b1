"""Rows of a manifest by split, label and status, and the classes that they have."""

from __future__ import annotations

import os
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.config import UserError
from tubelet.corpus.manifest import ManifestSlices, label_columns, read_manifest
from tubelet.corpus.split_names import normalise_split
from tubelet.corpus.tally import has_label
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions
from tubelet.storage.pinned import retry_if_changed

# Rows that are put together as they are read: held in many small pieces they take half as much again.
_PIECE_ROWS = 100_000


def select(
    manifest: pa.Table | str | os.PathLike[str],
    split: str | None = None,
    *,
    labelled: bool | None = None,
    head: str = "label",
    status: str | None = "ok",
    required: bool = False,
    ordered: bool = False,
) -> pa.Table:
    """The rows of a split that have (``labelled=True``) or lack (``False``) a label.

    Args:
        head: the label column that ``labelled`` looks at.
        status: rows of this status only; None: of any.
        required: an empty result is an error.
        ordered: by key and segment, each column in one piece; no other copy of the rows is made on the way.

    Raises:
        UserError: the head does not exist; ``required`` and nothing is left (says what there is).
    """
    table = manifest if isinstance(manifest, pa.Table) else read_manifest(manifest)
    if head not in table.column_names:
        raise UserError(f"the manifest has no labels {head!r}; it has {', '.join(label_columns(table))}")
    usable = pc.is_valid(table.column("key"))
    if status is not None:
        usable = pc.and_(usable, pc.equal(table.column("status"), status))
    keep = usable
    if split is not None:
        keep = pc.and_(keep, pc.fill_null(pc.equal(split_names(table), normalise_split(split)), False))
    if labelled is not None:
        has = has_label(table.column(head))
        keep = pc.and_(keep, has if labelled else pc.invert(has))
    # Rows are copied once: of a million examples each copy is hundreds of megabytes.
    if ordered:
        chosen = table.take(_in_order(table, pc.indices_nonzero(keep))).combine_chunks()
    else:
        chosen = table if pc.all(keep).as_py() else table.filter(keep)
    if required and not chosen.num_rows:
        raise _nothing_left(table.filter(usable), split, labelled, head)
    return chosen


def _in_order(table: pa.Table, places: pa.Array) -> pa.Array:
    """``places`` of rows by key and segment."""
    by = [("key", "ascending"), ("segment", "ascending")]
    return places.take(pc.sort_indices(table.select([name for name, _ in by]).take(places), sort_keys=by))


def read_labelled(
    uri: str | os.PathLike[str],
    heads: Collection[str],
    *,
    without: Collection[str] = (),
    options: StorageOptions = DEFAULT_OPTIONS,
) -> pa.Table:
    """The usable rows of a manifest that have a label in any of ``heads``; memory is that of these rows.

    Where no row has one, all rows: so that what is wrong can be said.

    Args:
        without: columns that are not read.

    Raises:
        UserError: as :func:`tubelet.corpus.manifest.read_manifest`.
    """

    def read() -> pa.Table:
        pieces: list[pa.Table] = []
        waiting: list[pa.Table] = []
        for rows in ManifestSlices.open(uri, without=without, options=options):
            waiting.append(_labelled(rows, heads))
            if sum(map(len, waiting)) >= _PIECE_ROWS:
                pieces.append(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        return pa.concat_tables([*pieces, *waiting] or [pa.table({})])

    found = retry_if_changed(read)
    return found if found.num_rows else read_manifest(uri, without=without, options=options)


def _labelled(rows: pa.Table, heads: Collection[str]) -> pa.Table:
    keep = pa.chunked_array([pa.array(np.zeros(rows.num_rows, np.bool_))])
    for head in heads:
        if head in rows.column_names:
            keep = pc.or_(keep, has_label(rows[head]))
    return rows.filter(pc.and_(keep, pc.equal(rows["status"], "ok")))


def _nothing_left(usable: pa.Table, split: str | None, labelled: bool | None, head: str) -> UserError:
    kind = {None: "usable", True: "labelled", False: "unlabelled"}[labelled]
    if labelled and not pc.any(has_label(usable.column(head))).as_py():
        return UserError(
            f"none of the {usable.num_rows} usable videos has a label in {head!r}\n"
            "index again with --labels FILE, or --labels folders where each class has a folder"
        )
    where = "" if split is None else f" in split {split!r}"
    counts = ", ".join(f"{name} {count}" for name, count in split_counts(usable, head, labelled).items())
    return UserError(f"there are no {kind} videos{where}; the splits hold: {counts or 'nothing'}")


def split_counts(table: pa.Table, head: str = "label", labelled: bool | None = None) -> dict[str, int]:
    """Rows by split (``none`` where there is no split), sorted by name."""
    if labelled is not None:
        has = has_label(table.column(head))
        table = table.filter(has if labelled else pc.invert(has))
    counts = pc.value_counts(pc.fill_null(split_names(table), "none")).to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counts, key=lambda item: item["values"])}


def split_names(table: pa.Table) -> pa.ChunkedArray:
    """The column ``split``, with one name for each of the usual splits (``validation`` is ``val``)."""
    column = table.column("split")
    names = [name for name in pc.unique(column).to_pylist() if name is not None]
    if all(normalise_split(name) == name for name in names):
        return column
    values = [None if name is None else normalise_split(name) for name in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.string())])


def label_values(table: pa.Table, head: str = "label") -> pa.ChunkedArray:
    """All labels of ``head``, one after the other, also where a video has several."""
    column = table.column(head)
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


def class_names(table: pa.Table, head: str = "label", *, at_least: int = 0) -> list[str]:
    """The distinct labels of ``head`` in sorted order.

    Args:
        at_least: fewer classes than this are an error (2 for training).

    Raises:
        UserError: too few classes; the message names what there is.
    """
    values = pc.unique(label_values(table, head)).to_pylist()
    names = sorted(str(value) for value in values if value is not None)
    if not names and at_least:
        raise UserError(f"no video has a label in {head!r}: index with --labels FILE, or --labels folders")
    if len(names) < at_least:
        raise UserError(
            f"all labelled videos have the one class {names[0]!r} in {head!r}: nothing to tell apart\n"
            "label videos of another class too, and index again with --labels"
        )
    return names

"""What an update takes over from the manifest that is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.known_rows import KnownRows
from tubelet.corpus.listing import Listing
from tubelet.corpus.manifest import ManifestSlices, label_columns, made_from, manifest_exists
from tubelet.corpus.parts import Row, merge_earlier
from tubelet.corpus.probing import promises_video
from tubelet.corpus.versions import is_one_file, split_version
from tubelet.storage.pinned import retry_if_changed
from tubelet.video import Status, to_retry

# What probing found out; all else in a row comes from the listing.
PROBED_COLUMNS = (
    "status",
    "error_code",
    "error",
    "codec",
    "width",
    "height",
    "rotation",
    "fps",
    "vfr",
    "frames",
    "duration_s",
    "start_s",
    "keyframes_s",
    "indexed_at",
)

# What a manifest says of objects whose name promises no video, since this revision of the rules.
RULES = 2


def check_output(out: str, *, update: bool) -> bool:
    """Whether a manifest is at ``out`` already.

    Raises:
        UserError: there is one and ``update`` is not set, or ``out`` holds something else.
    """
    if split_version(out)[1] is not None:
        raise UserError(f"{out} is one version of a manifest: give --out the manifest itself")
    if manifest_exists(out):
        if not update:
            raise UserError(f"{out} exists: add --update to bring it up to date, or choose another --out")
        return True
    if storage.stat(out) is not None:
        raise UserError(f"{out} is a file that is no manifest: choose another --out")
    others = [name for name in storage.list_names(out) if not name.startswith((".", "_"))]
    if others:
        kind = "a folder" if is_one_file(out) else "a folder with other things in it"
        raise UserError(f"{out} is {kind} ({others[0]!r}): choose an --out of its own for the manifest")
    return False


class Earlier:
    """The manifest before the update, or nothing; its rows lie on local disk.

    Attributes:
        made_from: what it was made from.
        heads: its label columns, and whether each is multi-label.
        to_probe, unchanged, removed: set by :meth:`compare`.
    """

    def __init__(self, out: str | None, folder: Path, *, retry_errors: bool = False) -> None:
        """Read the manifest at ``out``.

        Args:
            out: where it lies; None: there is none.
            folder: a folder for what is kept of it.
            retry_errors: objects with errors are to be probed again, whatever the error.

        Raises:
            UserError: the manifest cannot be read.
        """
        self.made_from: dict[str, Any] = {}
        self.heads: dict[str, bool] = {}
        self._retry_errors = retry_errors
        self._rows = KnownRows(folder / "earlier.arrow")
        if out is not None:
            self.made_from = made_from(out)
            retry_if_changed(lambda: self._read(out, folder))
        self._rows.close()
        self._seen = np.zeros(self._rows.rows, np.bool_)
        self.to_probe = self.unchanged = self.removed = 0

    def _read(self, out: str, folder: Path) -> None:
        self._rows = KnownRows(folder / "earlier.arrow")
        for table in ManifestSlices.open(out):
            self.heads = {n: pa.types.is_list(table.schema.field(n).type) for n in label_columns(table)}
            self._rows.add(table)

    def compare(self, listing: Listing, src: str) -> None:
        """Find out what is new or changed, what is unchanged, and what is gone.

        Raises:
            UserError: the manifest is of another corpus.
        """
        for rows in listing.batches():
            firsts, lasts = self._rows.find([row["key"] for row in rows])
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                self._seen[self._rows.rows_at(np.arange(first, last))] = True
            usable = [self._usable(row, known) is not None for row, known in self._known(rows)]
            self.unchanged += sum(usable)
            self.to_probe += len(rows) - sum(usable)
        origin = self.made_from.get("src")
        if self._rows.rows and not self._seen.any() and origin not in (None, src):
            raise UserError(
                f"--update: the manifest is of {origin}, and shares no object with {src}\n"
                "give the SRC it was made from, or choose another --out"
            )
        for number in self._rows.tables():
            numbers, table = self._rows.table(number)
            gone = pc.equal(table["status"], str(Status.GONE)).to_numpy()
            keys = np.array(table["key"].to_pylist(), object)[~self._seen[numbers] & ~gone]
            self.removed += len(set(keys))

    def pair(
        self, listing: Listing, heads: Mapping[str, bool], split: str | None
    ) -> Iterator[tuple[Row, bool]]:
        """Each listed row with what the manifest knows of it, and whether that makes probing needless.

        Args:
            listing: the rows.
            heads: the label columns of the new manifest.
            split: how splits are assigned; None: by default.
        """
        # Another tool made the manifest, and assigned the splits.
        foreign = "src" not in self.made_from and split is None
        for rows in listing.batches():
            for row, known in self._known(rows):
                row["attempts"] = 0
                row |= {name: row.get(name) for name in heads}
                merge_earlier(row, known, heads, keep_split=foreign)
                if known and known[0]["etag"] == row["etag"] and not self._retry_errors:
                    row["attempts"] = known[0]["attempts"] or 0
                found = self._usable(row, known)
                if found is not None:
                    row |= {name: found[name] for name in PROBED_COLUMNS}
                yield row, found is not None

    def gone(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows of objects that are no longer there, as ``schema`` wants them."""
        changes: dict[str, pa.Scalar] = {
            "status": pa.scalar(str(Status.GONE)),
            "error_code": pa.scalar("gone"),
            "error": pa.scalar("no longer in the bucket"),
        }
        for number in self._rows.tables():
            numbers, rows = self._rows.table(number)
            table = rows.filter(pa.array(~self._seen[numbers]))
            columns = []
            for wanted in schema:
                if wanted.name in changes:
                    columns.append(pa.repeat(changes[wanted.name], table.num_rows))
                elif wanted.name in table.column_names:
                    columns.append(_as_type(table.column(wanted.name), wanted.type))
                else:
                    columns.append(pa.nulls(table.num_rows, wanted.type))
            if table.num_rows:
                yield pa.table(columns, schema=schema)

    def _known(self, rows: list[Row]) -> Iterator[tuple[Row, list[Row]]]:
        """Each listed row with the manifest's rows of its key, the one of the whole first."""
        firsts, lasts = self._rows.find([row["key"] for row in rows])
        spans = [self._rows.rows_at(np.arange(a, b)) for a, b in zip(firsts, lasts, strict=True)]
        taken = iter(self._rows.take(np.concatenate([np.zeros(0, np.int64), *spans])))
        for row, span in zip(rows, spans, strict=True):
            known = [next(taken) for _ in span]
            yield (
                row,
                sorted((one for one in known if one["key"] == row["key"]), key=lambda one: one["segment"]),
            )

    def _usable(self, row: Row, known: list[Row]) -> Row | None:
        """What was found out about the content before, if it still holds."""
        strict = self.made_from.get("rules") == RULES
        for one in known:
            attempts = 0 if self._retry_errors else one["attempts"] or 0
            if (
                one["status"] != Status.GONE
                and one["etag"] == row["etag"]
                and (row["size"] is None or one["size"] is None or one["size"] == row["size"])
                and not to_retry(one["error_code"], attempts)
                and not (self._retry_errors and one["status"] == Status.ERROR)
                and (strict or promises_video(one["path"] or ""))
            ):
                return one
        return None


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """A label column of single labels as lists, where the new manifest has lists."""
    if column.type == kind:
        return column
    if pa.types.is_list(kind) and column.type == pa.string():
        return pa.array([None if cell is None else [cell] for cell in column.to_pylist()], kind)
    return pa.nulls(len(column), kind)

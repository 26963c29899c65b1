"""What an update takes over from the manifest that is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.known_rows import Ints, KnownRows, spans
from tubelet.corpus.listing import Listing
from tubelet.corpus.manifest import (
    FILE_FACTS,
    SCHEMA,
    ManifestSlices,
    label_columns,
    made_from,
    manifest_exists,
)
from tubelet.corpus.probing import promises_video
from tubelet.corpus.versions import is_one_file, split_version
from tubelet.storage.pinned import retry_if_changed
from tubelet.video import MAX_ATTEMPTS, TRANSIENT, Status

# What probing found out; all else in a row comes from the listing.
PROBED_COLUMNS = ("status", "error_code", "error", *(name for name, _ in FILE_FACTS), "indexed_at")

_COMPARED = ("key", "segment", "path", "etag", "size", "status", "error_code", "attempts")

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


@dataclass(frozen=True)
class Match:
    """What an earlier manifest has of the objects of one batch of a listing.

    Attributes:
        numbers: its rows, by object and segment.
        owners: the place in the batch of each of these.
        usable: for each object, the row whose verdict still holds, or -1.
    """

    numbers: Ints
    owners: Ints
    usable: Ints


class Earlier:
    """The manifest before the update, or nothing; its rows lie on local disk.

    Attributes:
        made_from: what it was made from.
        heads: its label columns, and whether each is multi-label.
        retry_errors: objects with errors are to be probed again, whatever the error.
        to_probe, unchanged, removed: set by :meth:`compare`.
    """

    def __init__(self, out: str | None, folder: Path, *, retry_errors: bool = False) -> None:
        """Read the manifest at ``out``.

        Args:
            out: where it lies; None: there is none.
            folder: a folder for what is kept of it.
            retry_errors: as the attribute.

        Raises:
            UserError: the manifest cannot be read.
        """
        self.made_from: dict[str, Any] = {}
        self.heads: dict[str, bool] = {}
        self.retry_errors = retry_errors
        self._rows = KnownRows(folder / "earlier.arrow", SCHEMA)
        if out is not None:
            self.made_from = made_from(out)
            retry_if_changed(lambda: self._read(out, folder))
        self._rows.close()
        self._strict = self.made_from.get("rules") == RULES
        self._seen = np.zeros(self._rows.rows, np.bool_)
        self.to_probe = self.unchanged = self.removed = 0

    def _read(self, out: str, folder: Path) -> None:
        self._rows = KnownRows(folder / "earlier.arrow", SCHEMA)
        for table in ManifestSlices.open(out):
            if not self._rows.rows:
                self._rows = KnownRows(folder / "earlier.arrow", table.schema.remove_metadata())
                self.heads = {n: pa.types.is_list(table.schema.field(n).type) for n in label_columns(table)}
            self._rows.add(table.replace_schema_metadata(None))

    def compare(self, listing: Listing, src: str) -> None:
        """Find out what is new or changed, what is unchanged, and what is gone.

        Raises:
            UserError: the manifest is of another corpus.
        """
        for batch in listing.tables():
            found = self.match(batch)
            self._seen[found.numbers] = True
            usable = int((found.usable >= 0).sum())
            self.unchanged += usable
            self.to_probe += batch.num_rows - usable
        origin = self.made_from.get("src")
        if self._rows.rows and not self._seen.any() and origin not in (None, src):
            raise UserError(
                f"--update: the manifest is of {origin}, and shares no object with {src}\n"
                "give the SRC it was made from, or choose another --out"
            )
        for number in self._rows.tables():
            numbers, table = self._rows.table(number)
            gone = pc.equal(table["status"], str(Status.GONE)).to_numpy()
            left = table["key"].filter(pa.array(~self._seen[numbers] & ~gone))
            self.removed += len(pc.unique(left))

    def match(self, batch: pa.RecordBatch) -> Match:
        """The rows of the objects of ``batch``, which has the columns of a listing."""
        places, owners = spans(*self._rows.find(batch))
        numbers = self._rows.rows_at(places)
        known = self._rows.gather(numbers, _COMPARED)
        segments = known["segment"].fill_null(0).to_numpy()
        same = pc.equal(batch.column("key").take(pa.array(owners)), known["key"]).to_numpy(False)
        order = np.lexsort((segments, owners))
        order = order[same[order]]
        numbers, owners, known = numbers[order], owners[order], known.take(pa.array(order))
        usable: Ints = np.full(batch.num_rows, -1, np.int64)
        holds = self._holds(batch.take(pa.array(owners)), known)
        which, first = np.unique(owners[holds], return_index=True)
        usable[which] = numbers[holds][first]
        return Match(numbers, owners, usable)

    def rows(self, numbers: Ints, columns: Sequence[str] | None = None) -> pa.Table:
        """Some of its rows."""
        return self._rows.gather(numbers, self._rows.schema.names if columns is None else columns)

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
                    columns.append(as_type(table.column(wanted.name), wanted.type))
                else:
                    columns.append(pa.nulls(table.num_rows, wanted.type))
            if table.num_rows:
                yield pa.table(columns, schema=schema)

    def _holds(self, listed: pa.RecordBatch, known: pa.Table) -> npt.NDArray[np.bool_]:
        """Whether what was found out about the content before still holds, by row."""
        status, sizes = known["status"], (listed.column("size"), known["size"])
        attempts = pa.repeat(pa.scalar(0, pa.int32()), len(known)) if self.retry_errors else known["attempts"]
        again = pc.and_(
            pc.is_in(known["error_code"], pa.array([str(code) for code in TRANSIENT])),
            pc.less(pc.fill_null(attempts, 0), MAX_ATTEMPTS),
        )
        holds = pc.and_(
            pc.and_(pc.not_equal(status, str(Status.GONE)), same_cells(listed.column("etag"), known["etag"])),
            pc.and_(pc.fill_null(pc.equal(*sizes), True), pc.invert(again)),
        )
        if self.retry_errors:
            holds = pc.and_(holds, pc.not_equal(status, str(Status.ERROR)))
        found: npt.NDArray[np.bool_] = holds.to_numpy(zero_copy_only=False)
        if not self._strict:
            paths = known["path"].to_pylist()
            found = found & np.fromiter((promises_video(p or "") for p in paths), np.bool_, len(paths))
        return found


def same_cells(one: Any, two: Any) -> Any:
    """Whether cells are equal, or both null."""
    return pc.or_(pc.fill_null(pc.equal(one, two), False), pc.and_(pc.is_null(one), pc.is_null(two)))


def as_type(column: Any, kind: pa.DataType) -> Any:
    """A label column of single labels as lists, where the new manifest has lists."""
    if column.type == kind:
        return column
    if pa.types.is_list(kind) and column.type == pa.string():
        return pa.array([None if cell is None else [cell] for cell in column.to_pylist()], kind)
    return pa.nulls(len(column), kind)

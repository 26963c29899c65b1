"""What an update takes over from the manifest that is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.listing import Listing
from tubelet.corpus.manifest import made_from, manifest_file, read_manifest
from tubelet.video import TRANSIENT

# What probing found out; all else in a row comes from the listing.
_PROBED_COLUMNS = (
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

Row = dict[str, Any]


def check_output(out: str, *, update: bool) -> bool:
    """Whether a manifest is at ``out`` already.

    Raises:
        UserError: there is one and ``update`` is not set, or ``out`` holds something else.
    """
    file = manifest_file(out)
    if storage.stat(file) is not None:
        if not update:
            raise UserError(f"{out} exists: add --update to bring it up to date, or choose another --out")
        return True
    if storage.stat(out) is not None:
        raise UserError(f"{out} is a file that is no manifest: choose another --out")
    others = [name for name in storage.list_names(out) if not name.startswith((".", "_"))]
    if others:
        kind = "a folder" if out == file else "a folder with other things in it"
        raise UserError(f"{out} is {kind} ({others[0]!r}): choose an --out of its own for the manifest")
    return False


class Earlier:
    """The manifest before the update, or nothing.

    Attributes:
        made_from: what it was made from.
        to_probe, unchanged, removed: set by :meth:`compare`.
        first_to_probe: the first row that has to be probed.
    """

    def __init__(self, out: str | None) -> None:
        self.made_from: dict[str, Any] = {} if out is None else made_from(out)
        table = None if out is None else read_manifest(out)
        self._table = None if table is None else table.filter(pc.equal(table.column("segment"), 0))
        self._index: dict[str, int] = {}
        self._etags: list[str | None] = []
        self._usable: list[bool] = []
        if self._table is not None:
            self._index = {key: i for i, key in enumerate(self._table.column("key").to_pylist())}
            self._etags = self._table.column("etag").to_pylist()
            pairs = zip(*(self._table.column(n).to_pylist() for n in ("status", "error_code")), strict=True)
            self._usable = [status != "gone" and code not in TRANSIENT for status, code in pairs]
        self._seen = bytearray(len(self._index))
        self.to_probe = self.unchanged = self.removed = 0
        self.first_to_probe: Row | None = None

    def compare(self, listing: Listing, src: str) -> None:
        """Find out what is new or changed, what is unchanged, and what is gone.

        Raises:
            UserError: the manifest is of another corpus.
        """
        for rows in listing.batches():
            for row in rows:
                if row["key"] in self._index:
                    self._seen[self._index[row["key"]]] = 1
                if self._unchanged(row) is None:
                    self.to_probe += 1
                    self.first_to_probe = self.first_to_probe or row
                else:
                    self.unchanged += 1
        origin = self.made_from.get("src")
        if self._index and not any(self._seen) and origin not in (None, src):
            raise UserError(
                f"--update: the manifest is of {origin}, and shares no object with {src}\n"
                "give the SRC it was made from, or choose another --out"
            )
        if self._table is not None:
            status = self._table.column("status").to_pylist()
            self.removed = sum(not s and status[i] != "gone" for i, s in enumerate(self._seen))

    def pair(self, listing: Listing) -> Iterator[tuple[Row, Row | None]]:
        """Each listed row with the columns that need no probing, or None."""
        for rows in listing.batches():
            numbers = [self._unchanged(row) for row in rows]
            kept = iter(self._take([n for n in numbers if n is not None]))
            for row, number in zip(rows, numbers, strict=True):
                yield row, None if number is None else next(kept)

    def gone(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows of objects that are no longer there, as ``schema`` wants them."""
        if self._table is None:
            return
        table = self._table.filter(pa.array([not seen for seen in self._seen], pa.bool_()))
        changes: dict[str, pa.Scalar] = {
            "status": pa.scalar("gone"),
            "error_code": pa.scalar("gone"),
            "error": pa.scalar("no longer in the bucket"),
        }
        columns = []
        for wanted in schema:
            if wanted.name in changes:
                columns.append(pa.repeat(changes[wanted.name], table.num_rows))
            elif wanted.name in table.column_names and table.column(wanted.name).type == wanted.type:
                columns.append(table.column(wanted.name))
            else:
                columns.append(pa.nulls(table.num_rows, wanted.type))
        if table.num_rows:
            yield pa.table(columns, schema=schema)

    def _unchanged(self, row: Row) -> int | None:
        number = self._index.get(row["key"])
        if number is None or not self._usable[number] or self._etags[number] != row["etag"]:
            return None
        return number

    def _take(self, numbers: list[int]) -> list[Row]:
        if self._table is None or not numbers:
            return []
        rows: list[Row] = self._table.select(_PROBED_COLUMNS).take(pa.array(numbers)).to_pylist()
        return rows

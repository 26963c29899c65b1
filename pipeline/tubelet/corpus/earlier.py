"""What an update takes over from the manifest that is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.listing import Listing, Row
from tubelet.corpus.manifest import label_columns, made_from, manifest_file, read_manifest
from tubelet.corpus.probing import promises_video
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
    """

    def __init__(self, out: str | None, *, retry_errors: bool = False) -> None:
        """Read the manifest at ``out``.

        Args:
            out: where it lies; None: there is none.
            retry_errors: objects with errors are to be probed again, whatever the error.

        Raises:
            UserError: the manifest cannot be read, or has segments.
        """
        self.made_from: dict[str, Any] = {} if out is None else made_from(out)
        self._table = None if out is None else read_manifest(out)
        self._index: dict[str, int] = {}
        self._etags: list[str | None] = []
        self._usable: list[bool] = []
        self._attempts: list[int] = []
        if self._table is not None:
            _refuse_segments(self._table, str(out))
            columns = ("key", "etag", "path", "status", "error_code", "attempts")
            keys, self._etags, paths, states, codes, attempts = (
                self._table.column(name).to_pylist() for name in columns
            )
            self._index = {key: i for i, key in enumerate(keys)}
            self._attempts = [0 if retry_errors else count or 0 for count in attempts]
            strict = self.made_from.get("rules") == RULES
            self._usable = [
                state != Status.GONE
                and not to_retry(code, count)
                and not (retry_errors and state == Status.ERROR)
                and (strict or promises_video(path or ""))
                for state, code, count, path in zip(states, codes, self._attempts, paths, strict=True)
            ]
        self._seen = bytearray(len(self._index))
        self.to_probe = self.unchanged = self.removed = 0

    def kept_columns(self, labels: str | None, heads: dict[str, bool], split: str | None) -> dict[str, Any]:
        """Columns whose values survive the update, as nothing that it was given makes them anew.

        Args:
            labels: where labels come from; None: nowhere.
            heads: the label columns that come from there.
            split: how splits are assigned; None: by default.

        Returns:
            Name and type of each.
        """
        if self._table is None:
            return {}
        new = set() if labels is None else set(heads)
        names = [name for name in label_columns(self._table) if name not in new]
        if "src" not in self.made_from and split is None:  # another tool made it, and assigned the splits
            names += ["split", "group"]
        return {name: self._table.schema.field(name).type for name in names}

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
            self.removed = sum(not s and status[i] != Status.GONE for i, s in enumerate(self._seen))

    def pair(self, listing: Listing, kept: Collection[str]) -> Iterator[tuple[Row, bool]]:
        """Each listed row with what the manifest knows of it, and whether that makes probing needless.

        Args:
            listing: the rows.
            kept: columns that are taken over, whether the object changed or not.
        """
        for rows in listing.batches():
            numbers = [self._unchanged(row) for row in rows]
            probed = iter(self._take([n for n in numbers if n is not None], PROBED_COLUMNS))
            known = [self._index.get(row["key"]) for row in rows]
            values = iter(self._take([n for n in known if n is not None], tuple(kept)))
            for row, number, place in zip(rows, numbers, known, strict=True):
                row["attempts"] = 0
                row |= {name: row.get(name) for name in kept}
                if place is not None:
                    row.update(next(values))
                    if self._etags[place] == row["etag"]:
                        row["attempts"] = self._attempts[place]
                if number is not None:
                    row.update(next(probed))
                yield row, number is not None

    def gone(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows of objects that are no longer there, as ``schema`` wants them."""
        if self._table is None:
            return
        table = self._table.filter(pa.array([not seen for seen in self._seen], pa.bool_()))
        changes: dict[str, pa.Scalar] = {
            "status": pa.scalar(str(Status.GONE)),
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

    def _take(self, numbers: list[int], columns: tuple[str, ...]) -> list[Row]:
        if self._table is None or not numbers:
            return []
        if not columns:
            return [{} for _ in numbers]
        rows: list[Row] = self._table.select(columns).take(pa.array(numbers)).to_pylist()
        return rows


def _refuse_segments(table: pa.Table, name: str) -> None:
    clips = pc.or_(pc.is_valid(table.column("clip_start_s")), pc.is_valid(table.column("clip_end_s")))
    if pc.any(pc.or_(clips, pc.not_equal(table.column("segment"), 0))).as_py():
        raise UserError(
            f"{name} has segments (parts of videos), which --update would lose: choose another --out"
        )

"""From a listing, the manifest before and what probing found: the rows of the new manifest, by columns.

Nearly all objects have one row and no segments: theirs come from Arrow kernels. The others go row by row
through :mod:`tubelet.corpus.parts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.corpus.earlier import PROBED_COLUMNS, Earlier, Match, as_type
from tubelet.corpus.known_rows import Ints
from tubelet.corpus.listing import Listing
from tubelet.corpus.manifest import schema_with
from tubelet.corpus.parts import Row, merge_earlier, rows_of
from tubelet.corpus.probed import Probed
from tubelet.corpus.probing import judge
from tubelet.corpus.tally import IndexTally, has_label
from tubelet.video import TRANSIENT, ErrorCode, Status

_TRANSIENT = pa.array([str(code) for code in TRANSIENT])
# Objects whose rows are made at once: at first, at most, and as many as have rows of about this size. Those
# of long videos that have keyframes alone take a megabyte each.
_FIRST_ROWS, _MOST_ROWS, _TABLE_BYTES = 256, 2048, 16 << 20
_PART_COLUMNS = ("segment", "clip_start_s", "clip_end_s")


@dataclass(frozen=True)
class Assembly:
    """Makes the rows of a manifest.

    Attributes:
        listing: the objects.
        earlier: the manifest before.
        probed: what is known of the content of all objects that the manifest before says nothing of.
        tally: counts the rows.
        foreign: another tool made the manifest before, and assigned the splits.
    """

    listing: Listing
    earlier: Earlier
    probed: Probed
    tally: IndexTally
    foreign: bool

    @property
    def heads(self) -> dict[str, bool]:
        """The label columns, and whether each is multi-label."""
        heads = {"label": False}
        for name, many in [*self.listing.heads.items(), *self.earlier.heads.items()]:
            heads[name] = heads.get(name, False) or many
        return heads

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        return schema_with(self.heads)

    def tables(self) -> Iterator[pa.Table]:
        """All rows: of each object as they were listed, then those of objects that are gone."""
        rows = _FIRST_ROWS
        for batch in self.listing.tables():
            start = 0
            while start < batch.num_rows:
                table = self._rows(batch.slice(start, rows))
                start += rows
                fitting = table.num_rows * _TABLE_BYTES // max(1, table.nbytes)
                rows = max(1, min(fitting, 8 * rows, _MOST_ROWS))
                yield table
        yield from self.earlier.gone(self.schema)

    def _rows(self, batch: pa.RecordBatch) -> pa.Table:
        found = self.earlier.match(batch)
        verdicts = self._verdicts(batch, found)
        simple = self._simple(batch, found)
        table = self._at_once(batch, found, verdicts).filter(pa.array(simple))
        self.tally.count_table(table, list(self.heads))
        if simple.all():
            return table
        rows, owners = [], []
        for place, row in self._one_by_one(batch, found, verdicts, np.flatnonzero(~simple)):
            rows.append(row)
            owners.append(place)
        others = pa.Table.from_pylist(rows, schema=self.schema)
        order = np.argsort(np.concatenate([np.flatnonzero(simple), np.array(owners, int)]), kind="stable")
        return pa.concat_tables([table, others]).combine_chunks().take(pa.array(order))

    def _simple(self, batch: pa.RecordBatch, found: Match) -> npt.NDArray[np.bool_]:
        """Objects that have no segments, now or before."""
        simple: npt.NDArray[np.bool_] = (
            batch.column("segments").is_null().to_numpy(zero_copy_only=False).copy()
        )
        if len(found.numbers):
            known = self.earlier.rows(found.numbers, _PART_COLUMNS)
            whole = pc.and_(pc.is_null(known["clip_start_s"]), pc.is_null(known["clip_end_s"]))
            whole = pc.and_(whole, pc.equal(pc.fill_null(known["segment"], 0), 0))
            simple[found.owners[~whole.to_numpy(zero_copy_only=False)]] = False
            simple &= np.bincount(found.owners, minlength=batch.num_rows) <= 1
        return simple

    def _verdicts(self, batch: pa.RecordBatch, found: Match) -> pa.Table:
        """What is known of the content of each object: :data:`PROBED_COLUMNS`, the status judged."""
        held = np.flatnonzero(found.usable >= 0)
        left = np.flatnonzero(found.usable < 0)
        pieces = [
            self.earlier.rows(found.usable[held], PROBED_COLUMNS),
            self.probed.gather(batch.take(pa.array(left))),
        ]
        schema = pieces[1].schema
        whole = pa.concat_tables([piece.cast(schema) for piece in pieces if len(piece)] or [pieces[1]])
        order = np.argsort(np.concatenate([held, left]), kind="stable")
        table = whole.combine_chunks().take(pa.array(order))
        odd = np.flatnonzero(
            pc.fill_null(pc.equal(table["error_code"], str(ErrorCode.NOT_VIDEO)), False).to_numpy()
        )
        if not len(odd):
            return table
        status = np.array(table["status"].to_pylist(), object)
        for place in odd.tolist():
            row = {"error_code": ErrorCode.NOT_VIDEO, "path": batch.column("path")[place].as_py()}
            status[place] = str(judge(row, named=batch.column("named")[place].as_py()))
        return table.set_column(table.column_names.index("status"), "status", pa.array(status, pa.string()))

    def _attempts(self, found: Match, etags: Any, verdicts: pa.Table) -> Ints:
        """Runs in a row that ended in a failure which is no verdict, this one included."""
        attempts: Ints = np.zeros(len(etags), np.int64)
        if len(found.numbers) and not self.earlier.retry_errors:
            owners, first = np.unique(found.owners, return_index=True)
            known = self.earlier.rows(found.numbers[first], ("etag", "attempts"))
            same = pc.fill_null(pc.equal(etags.take(pa.array(owners)), known["etag"]), False).to_numpy()
            attempts[owners] = np.where(same, known["attempts"].fill_null(0).to_numpy(), 0)
        failed = pc.is_in(verdicts["error_code"], _TRANSIENT).to_numpy()
        attempts[found.usable < 0] += 1
        attempts[~failed] = 0
        return attempts

    def _at_once(self, batch: pa.RecordBatch, found: Match, verdicts: pa.Table) -> pa.Table:
        """The rows of all objects as if none had segments."""
        count = batch.num_rows
        columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
        for head, many in self.heads.items():
            kind = pa.list_(pa.string()) if many else pa.string()
            columns[head] = as_type(columns[head], kind) if head in columns else pa.nulls(count, kind)
        if len(found.numbers):
            self._merge(columns, found, count)
        columns |= {name: verdicts[name] for name in PROBED_COLUMNS}
        columns["attempts"] = pa.array(self._attempts(found, batch.column("etag"), verdicts), pa.int32())
        # What is no video is none of any class or split.
        none = pc.equal(columns["status"], str(Status.NOT_VIDEO))
        if pc.any(none).as_py():
            for name in (*self.heads, "split", "group"):
                kept = columns[name]
                columns[name] = pc.if_else(none, pa.scalar(None, kept.type), kept)
        cells = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in self.schema]
        return pa.table(cells, schema=self.schema)

    def _merge(self, columns: dict[str, Any], found: Match, count: int) -> None:
        """As :func:`tubelet.corpus.parts.merge_earlier`, of objects that have one earlier row."""
        which: Ints = np.full(count, -1, np.int64)
        which[found.owners[::-1]] = np.arange(len(found.owners))[::-1]  # the first of each
        before = [head for head in self.heads if head in self.earlier.heads]
        names = (*before, "corrected_at", "split", "group")
        known = self.earlier.rows(found.numbers, names).take(pa.array(which, mask=which < 0))
        there = pa.array(which >= 0)
        at, earlier_at = columns["corrected_at"], known["corrected_at"]
        newer = pc.fill_null(pc.less(at, earlier_at), True)
        wins = pc.and_(pc.is_valid(earlier_at), newer)
        for head in before:
            value = columns[head]
            open_ = pc.and_(pc.invert(has_label(value)), pc.is_null(at))
            kept = as_type(known[head], value.type)
            columns[head] = pc.if_else(pc.and_(there, pc.or_(wins, open_)), kept, value)
        columns["corrected_at"] = pc.if_else(wins, earlier_at, at)
        keep = there if self.foreign else pc.and_(there, pc.is_null(columns["split"]))
        for name in ("split", "group"):
            columns[name] = pc.if_else(keep, known[name], columns[name])

    def _one_by_one(
        self, batch: pa.RecordBatch, found: Match, verdicts: pa.Table, places: Ints
    ) -> Iterator[tuple[int, Row]]:
        heads = self.heads
        attempts = self._attempts(found, batch.column("etag"), verdicts)
        mine = np.isin(found.owners, places)
        earlier: dict[int, list[Row]] = {}
        known = self.earlier.rows(found.numbers[mine]).to_pylist() if mine.any() else []
        for place, one in zip(found.owners[mine].tolist(), known, strict=True):
            earlier.setdefault(place, []).append(one)
        chosen = pa.array(places)
        listed, judged = batch.take(chosen).to_pylist(), verdicts.take(chosen).to_pylist()
        for place, row, verdict in zip(places.tolist(), listed, judged, strict=True):
            row.update({name: row.get(name) for name in heads})
            merge_earlier(row, earlier.get(place, []), heads, keep_split=self.foreign)
            row.update(verdict, attempts=int(attempts[place]))
            if row["status"] == Status.NOT_VIDEO:
                row.update(dict.fromkeys([*heads, "split", "group"]))
            parts = list(rows_of(row, heads))
            self.tally.count(row, parts, list(heads))
            for part in parts:
                yield place, part

"""The exactly-once sink: what lies at the root of an output is at every moment a correct table.

A plain Parquet reader of the root (``OUT/*.parquet``) sees whole, committed part files and nothing else,
and each ``(key, window)`` in one row. Why that holds, without a commit log that plain readers would not
understand:

- One process, the driver, writes. Its death can lose rows that were not published yet, never add one.
- A part file appears whole in one atomic step that fails when the name is taken (a conditional put, or a
  hard link on a local disk), and parts are numbered without gaps. Who publishes part *n* has therefore seen
  all parts before *n*: even a job that lost its lock and woke up again cannot publish a row twice. It finds
  its number taken, reads what the other one published, and drops those rows.
- A newer row (the object changed, an error was tried again) takes the place of the older one *in the same
  part file*, which is overwritten whole in one atomic step: as the output's owner, and on S3 only where the
  file is still the one that was read (a put on condition of its etag). A row never moves from one file to
  another, because no object store can do that in one step: a reader in between would see it twice or not at
  all. For the same reason small parts are never merged. They are few, because the time between parts grows
  with the job.

What remains to a reader on an object store: a part that is overwritten *while* it is being read in several
ranged requests may make that one read fail; nothing wrong is returned. Parts are only overwritten by
replacements.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tubelet.corpus.digests import digests
from tubelet.inference.output import OutputFiles, parquet_bytes
from tubelet.inference.published import INDEX_COLUMNS, Published
from tubelet.video import TRANSIENT

_PART = re.compile(r"part-(\d{8})\.parquet")
_PART_ID = b"tubelet.part"


@dataclass(frozen=True)
class SinkLimits:
    """When gathered rows are published.

    Attributes:
        part_rows, part_bytes: a part is written when this much is gathered, which bounds the driver's memory.
        first_s, most_s: a part is written after this long at the latest. The time grows from the first to
            the most, as a fiftieth of the job's age: a kill costs at most 2 % of the work, and a long
            job doesn't leave thousands of small files.
        write_share: writing takes at most this share of the time; it holds back replacements, which rewrite
            whole parts.
    """

    part_rows: int = 50_000
    part_bytes: int = 64 << 20
    first_s: float = 2.0
    most_s: float = 120.0
    write_share: float = 0.05

    def interval_s(self, age_s: float, last_write_s: float) -> float:
        """Seconds to gather rows before the next part."""
        return max(min(max(age_s / 50, self.first_s), self.most_s), last_write_s / self.write_share)


def part_name(number: int) -> str:
    """Name of a part file at the output's root."""
    return f"part-{number:08d}.parquet"


def part_numbers(names: list[str]) -> list[int]:
    """Numbers of the part files among ``names``, ascending."""
    return sorted(int(match[1]) for name in names if (match := _PART.fullmatch(name)))


class PredictionSink:
    """Publishes rows of one model under one output; ``published`` is what its root held when it was opened.

    Not thread-safe: the driver's loop is its one user. Call :meth:`add` for each batch of new rows, and
    :meth:`close` at the end; what was added since the last part is otherwise lost, and made again by the
    next run.
    """

    def __init__(self, files: OutputFiles, schema: pa.Schema, limits: SinkLimits | None = None) -> None:
        self.files, self.schema, self.limits = files, schema, limits or SinkLimits()
        self.published = Published.of([])
        self._gathered: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._started_s = self._written_s = time.monotonic()
        self._last_write_s = 0.0
        self.reload()

    def reload(self) -> None:
        """Read again what the root holds."""
        numbers = part_numbers(self.files.names())
        self.published = Published.of(
            (n, self.files.read_table(part_name(n), INDEX_COLUMNS)) for n in numbers
        )
        self._next = numbers[-1] + 1 if numbers else 0

    def add(self, rows: pa.Table) -> None:
        """Gather rows (each place at most once until the next part) and publish when it is time."""
        if rows.num_rows:
            rows = self.counted(rows.select(self.schema.names).cast(self.schema))
            self._gathered.append(rows)
            # Totals as they come: to sum what is gathered at each call would grow with its square.
            self._rows += rows.num_rows
            self._bytes += rows.nbytes
        if self._gathered and self._is_time():
            self.flush()

    def counted(self, rows: pa.Table) -> pa.Table:
        """``rows`` with the runs that ended with a transient error, this one included, as ``attempts``."""
        at = rows.schema.get_field_index("attempts")
        if at < 0:
            return rows
        transient = pc.is_in(rows["error_code"], pa.array(sorted(TRANSIENT)))
        counts = np.zeros(rows.num_rows, np.int32)
        if pc.any(transient).as_py():
            places = digests(rows["key"], rows["window"])
            earlier = self.published.earlier_attempts(places, digests(rows["etag"]))
            counts = np.where(transient.to_numpy(), earlier + 1, 0).astype(np.int32)
        return rows.set_column(at, rows.schema.field(at), pa.array(counts))

    def flush(self) -> None:
        """Publish all gathered rows now."""
        if not self._gathered:
            return
        began_s = time.monotonic()
        rows = pa.concat_tables(self._gathered)
        while rows is not None:
            rows = self._publish(rows)
        self._gathered, self._rows, self._bytes = [], 0, 0
        self._written_s = time.monotonic()
        self._last_write_s = self._written_s - began_s

    def close(self) -> None:
        """Publish what is left."""
        self.flush()

    def _is_time(self) -> bool:
        now_s = time.monotonic()
        interval_s = self.limits.interval_s(now_s - self._started_s, self._last_write_s)
        full = self._rows >= self.limits.part_rows or self._bytes >= self.limits.part_bytes
        return full or now_s - self._written_s >= interval_s

    def _publish(self, rows: pa.Table) -> pa.Table | None:
        """One attempt; returns the rows to try again when another writer came first, else None."""
        homes = self.published.locate(digests(rows["key"], rows["window"]))
        new = rows.filter(pa.array(homes < 0))
        if new.num_rows and not self._append(new):
            return self._after_conflict(rows)
        for number in sorted(set(self.published.parts[homes[homes >= 0]].tolist())):
            in_part = (homes >= 0) & (self.published.parts[homes] == number)
            self._replace(number, rows.filter(pa.array(in_part)))
        return None

    def _append(self, rows: pa.Table) -> bool:
        part_id = uuid4().hex
        name = part_name(self._next)
        if not self.files.create(name, _encode(rows, part_id)) and self._part_id(name) != part_id:
            return False
        self._next += 1
        return True

    def _part_id(self, name: str) -> str:
        """Who wrote a part: tells a lost answer to our own put from another writer's part."""
        found: bytes = (self.files.read_schema(name).metadata or {}).get(_PART_ID, b"")
        return found.decode()

    def _after_conflict(self, rows: pa.Table) -> pa.Table | None:
        """Another writer was first: keep the rows that it has not published from the same content."""
        self.files.check_owner()
        self.reload()
        places = digests(rows["key"], rows["window"])
        done = self.published.is_done(places, digests(rows["etag"]), retry_errors=True)
        left = rows.filter(pa.array(~done))
        return left if left.num_rows else None

    def _replace(self, number: int, newer: pa.Table) -> None:
        """Put ``newer`` rows in the places of the older ones, in one atomic overwrite of their part."""
        self.files.rewrite(part_name(number), lambda data: _encode(_merge(_decode(data), newer), uuid4().hex))


def _merge(part: pa.Table, newer: pa.Table) -> pa.Table:
    """``part`` without the rows that ``newer`` replaces, then ``newer``.

    Windows of a former content of a changed object go too: a shorter video has fewer of them.
    """
    keys, etags = newer["key"].to_pylist(), newer["etag"].to_pylist()
    taken, current = (
        set(zip(keys, newer["window"].to_pylist(), strict=True)),
        dict(zip(keys, etags, strict=True)),
    )
    former = zip(part["key"].to_pylist(), part["window"].to_pylist(), part["etag"].to_pylist(), strict=True)
    keep = [(key, window) not in taken and current.get(key, etag) == etag for key, window, etag in former]
    kept = part.filter(pa.array(keep, pa.bool_()))
    return pa.concat_tables([_with_columns_of(kept, newer.schema), newer])


def _with_columns_of(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """``part``, written before there were all columns of ``schema``, with nulls in those it has not."""
    for field in schema:
        if field.name not in part.column_names:
            part = part.append_column(field, pa.nulls(part.num_rows, field.type))
    return part.select(schema.names).cast(schema)


def _encode(rows: pa.Table, part_id: str) -> bytes:
    metadata: Mapping[bytes, Any] = {**(rows.schema.metadata or {}), _PART_ID: part_id.encode()}
    return parquet_bytes(rows.replace_schema_metadata(metadata))


def _decode(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)

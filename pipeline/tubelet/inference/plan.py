"""What is left to do: the manifest's rows without those that the output holds, as small request rows."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tubelet.corpus.digests import digests
from tubelet.inference.output import OutputFiles, parquet_bytes
from tubelet.inference.published import Published
from tubelet.inference.schema import REQUEST_SCHEMA
from tubelet.inference.second_look import SecondLook
from tubelet.inference.windows import Windows
from tubelet.video import TRANSIENT, Status

if TYPE_CHECKING:
    from tubelet.inference.workers import Reader

# Rows for what the index found broken: no worker sees them.
_KNOWN_ERROR_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("window", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("models", pa.int64()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
    ]
)
MANIFEST_COLUMNS = [
    "key",
    "segment",
    "uri",
    "path",
    "etag",
    "size",
    "status",
    "error_code",
    "error",
    "width",
    "height",
    "duration_s",
    "clip_start_s",
    "clip_end_s",
]
_SHARD_ROWS = 4096
_TRANSIENT = pa.array(sorted(TRANSIENT))


@dataclass(frozen=True)
class Shard:
    """One file of a plan, below the output."""

    name: str
    rows: int


@dataclass
class Plan:
    """What a job has to do.

    Attributes:
        shards: the plan's files, each a few thousand requests.
        requests: rows in them.
        objects: objects of the manifest (without those that are gone).
        rows: rows that the output will hold for them, by model.
        already_done, already_failed: of these, published before, by model; and errors among them.
        known_errors: files of rows that the index found broken, still to be published, with ``models``.
        reasons, examples: these by error code, and one message of each.
        largest_pixels: pixels of the largest picture among the requests (0: not known).
    """

    shards: list[Shard] = field(default_factory=list)
    requests: int = 0
    objects: int = 0
    rows: int = 0
    already_done: list[int] = field(default_factory=list)
    already_failed: list[int] = field(default_factory=list)
    known_errors: list[Shard] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    largest_pixels: int = 0

    @property
    def work(self) -> int:
        """Rows to make in this run (one for all models together)."""
        return self.requests + self.reasons.total()


def make_plan(
    manifest: Iterable[pa.Table],
    published: Sequence[Published],
    files: OutputFiles,
    folder: str,
    *,
    windows: Windows | None = None,
    look: SecondLook | None = None,
    retry_errors: bool = False,
) -> Plan:
    """Compare ``manifest`` (in slices) with what each output holds; write the requests below ``folder``.

    With ``windows``, what the index could not read for no fault of the file is looked into by ``look`` first:
    only its duration tells how many rows it is. That is so in each run, until the manifest knows it.

    The plan goes through the store and not through Ray's, so that neither the driver nor the object store
    holds a corpus of any size.
    """
    plan = Plan(already_done=[0] * len(published), already_failed=[0] * len(published))
    keys: list[npt.NDArray[np.uint64]] = []
    requests = _ShardWriter(files, f"{folder}/shard", plan.shards)
    errors = _ShardWriter(files, f"{folder}/errors", plan.known_errors)
    for listed in manifest:
        table = listed.select([name for name in MANIFEST_COLUMNS if name in listed.column_names])
        if windows is not None and look is not None:
            rows = _looked_into(table.to_pylist(), published, look, retry_errors)
            table = pa.Table.from_pylist(rows, schema=table.schema)
        candidates = _candidates(table, windows)
        # Rows of one object stand together, or nearly so: most of what stands twice goes here.
        keys.append(np.unique(digests(candidates["key"])))
        left = _left(candidates, published, plan, retry_errors)
        known = _known_errors(left, every=windows is not None)
        if known.any():
            _note_errors(plan, left.filter(pa.array(known)))
            errors.add(_error_rows(left.filter(pa.array(known))))
            left = left.filter(pa.array(~known))
        if left.num_rows:
            requests.add(_request_rows(left, plan.requests))
            plan.requests += left.num_rows
            plan.largest_pixels = max(plan.largest_pixels, _largest_pixels(left))
    requests.flush()
    errors.flush()
    plan.objects = len(np.unique(np.concatenate(keys))) if keys else 0
    return plan


def _looked_into(
    rows: list[dict[str, Any]], published: Sequence[Published], look: SecondLook, retry_errors: bool
) -> list[dict[str, Any]]:
    """``rows`` with what a second look finds, but for objects that all models have given up."""
    wanted = [row for row in rows if look.wanted(row)]
    if not wanted:
        return rows
    places = digests([row["key"] for row in wanted], [row.get("segment") or 0 for row in wanted])
    contents = digests([row["etag"] or "" for row in wanted])
    given_up = np.full(len(wanted), bool(published))
    for index in published:
        done = index.is_done(places, contents, retry_errors=retry_errors)
        given_up &= done & (index.failed[index.locate(places)] if len(index) else False)
    found = iter(look([row for row, left in zip(wanted, given_up, strict=True) if not left]))
    looked = {row["key"]: row for row in found}
    return [looked.get(row["key"], row) for row in rows]


def _candidates(table: pa.Table, windows: Windows | None) -> pa.Table:
    """One request per manifest row, or one per window; segments of one object are its windows."""
    nothing = pc.is_in(table["status"], pa.array([Status.GONE.value, Status.NOT_VIDEO.value]))
    table = table.filter(pc.invert(nothing))
    table = _with(table, "etag", pc.fill_null(table["etag"], ""))
    table = _with(table, "size", pc.fill_null(table["size"], -1))
    table = _with(table, "window", pc.fill_null(_column(table, "segment", pa.int32()), 0))
    for name in ("clip_start_s", "clip_end_s"):
        table = _with(table, name, _column(table, name, pa.float64()))
    return table if windows is None else _windows_of(table, windows)


def _windows_of(table: pa.Table, windows: Windows) -> pa.Table:
    """A row for each window of each row of ``table``; what failed has no windows, and stays."""
    rows: list[int] = []
    numbers: list[int] = []
    spans: list[tuple[float | None, float | None]] = []
    names = ("status", "window", "clip_start_s", "clip_end_s")
    durations = _column(table, "duration_s", pa.float64()).to_pylist()
    values = zip(*(table[name].to_pylist() for name in names), durations, strict=True)
    for row, (status, number, start_s, end_s, duration_s) in enumerate(values):
        if status == Status.ERROR:
            found, first = [(start_s, end_s)], number
        else:
            from_s, first = start_s or 0.0, 0
            length_s = (duration_s or 0.0 if end_s is None else end_s) - from_s
            found = [(from_s + one_s, from_s + two_s) for one_s, two_s in windows.of(length_s)]
        rows += [row] * len(found)
        numbers += range(first, first + len(found))
        spans += found
    table = _with(table.take(pa.array(rows, pa.int64())), "window", pa.array(numbers, pa.int32()))
    for place, name in enumerate(("clip_start_s", "clip_end_s")):
        table = _with(table, name, pa.array([span[place] for span in spans], pa.float64()))
    return table


def _left(rows: pa.Table, published: Sequence[Published], plan: Plan, retry_errors: bool) -> pa.Table:
    """Rows that some model has not published yet, with the bits of these models as ``models``."""
    plan.rows += rows.num_rows
    bits: npt.NDArray[np.int64] = np.zeros(rows.num_rows, np.int64)
    if any(len(index) for index in published):
        places, contents = digests(rows["key"], rows["window"]), digests(rows["etag"])
    for number, index in enumerate(published):
        if not len(index):
            bits |= 1 << number
            continue
        done = index.is_done(places, contents, retry_errors=retry_errors)
        plan.already_done[number] += int(done.sum())
        plan.already_failed[number] += int(index.failed[index.locate(places)[done]].sum())
        bits |= np.where(done, 0, 1 << number)
    rows = _with(rows, "models", pa.array(bits))
    return rows if bits.all() else rows.filter(pa.array(bits != 0))


def _known_errors(rows: pa.Table, *, every: bool) -> npt.NDArray[np.bool_]:
    """Which rows the index found broken, so that no worker need see them; ``every``: outages, too."""
    failed = pc.equal(rows["status"], Status.ERROR.value)
    if not every:
        failed = pc.and_(failed, pc.invert(pc.is_in(rows["error_code"], _TRANSIENT)))
    return np.asarray(failed.to_numpy(), np.bool_)


def _note_errors(plan: Plan, rows: pa.Table) -> None:
    for code, error in zip(rows["error_code"].to_pylist(), rows["error"].to_pylist(), strict=True):
        plan.reasons[str(code)] += 1
        plan.examples.setdefault(str(code), str(error))


def _request_rows(rows: pa.Table, first: int) -> pa.Table:
    rows = _with(rows, "request", pa.array(np.arange(first, first + rows.num_rows, dtype=np.int64)))
    for name in ("clip_start_s", "clip_end_s"):
        rows = _with(rows, name, pc.fill_null(rows[name], math.nan))
    return rows.select(REQUEST_SCHEMA.names).cast(REQUEST_SCHEMA)


def _error_rows(rows: pa.Table) -> pa.Table:
    rows = _with(_with(rows, "start_s", rows["clip_start_s"]), "end_s", rows["clip_end_s"])
    return rows.select(_KNOWN_ERROR_SCHEMA.names).cast(_KNOWN_ERROR_SCHEMA)


def _largest_pixels(rows: pa.Table) -> int:
    width, height = (_column(rows, name, pa.int32()).cast(pa.int64()) for name in ("width", "height"))
    return int(pc.max(pc.multiply(width, height)).as_py() or 0)


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(table.num_rows, kind)])


def _with(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """``table`` with the column ``name``, in place of the one it may have."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


class _ShardWriter:
    """Gathers rows into files of a plan, a few thousand each."""

    def __init__(self, files: OutputFiles, prefix: str, shards: list[Shard]) -> None:
        self._files, self._prefix, self._shards = files, prefix, shards
        self._rows: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        self._rows.append(rows)
        while sum(table.num_rows for table in self._rows) >= _SHARD_ROWS:
            gathered = pa.concat_tables(self._rows)
            self._write(gathered.slice(0, _SHARD_ROWS))
            self._rows = [gathered.slice(_SHARD_ROWS)]

    def flush(self) -> None:
        rows = pa.concat_tables(self._rows) if self._rows else None
        if rows is not None and rows.num_rows:
            self._write(rows)
        self._rows = []

    def _write(self, rows: pa.Table) -> None:
        name = f"{self._prefix}-{len(self._shards):06d}.parquet"
        self._files.write(name, parquet_bytes(rows))
        self._shards.append(Shard(name, rows.num_rows))


def read_shard(data: bytes) -> pa.Table:
    """The rows of one of a plan's files."""
    return pq.read_table(io.BytesIO(data))


@dataclass(frozen=True)
class Task:
    """Some requests of one shard.

    Attributes:
        tries: how often a worker died of it.
    """

    shard: str
    first: int
    count: int
    tries: int = 0

    def halves(self) -> list[Task]:
        """The task in two, where it is more than one request; tried once more."""
        count, tries = self.count // 2, self.tries + 1
        if not count:
            return [replace(self, tries=tries)]
        rest = replace(self, first=self.first + count, count=self.count - count, tries=tries)
        return [replace(self, count=count, tries=tries), rest]


@dataclass(frozen=True)
class ShardRequests:
    """The requests of a plan's shards, as the graph of inference takes them; workers read them themselves."""

    shards: Sequence[Shard]
    files: OutputFiles

    def tasks(self, rows: int) -> Iterator[pa.Table]:
        """``shard, first, count`` of tasks of at most ``rows`` requests."""
        for shard in self.shards:
            for first in range(0, shard.rows, rows):
                count = min(rows, shard.rows - first)
                yield pa.table({"shard": [shard.name], "first": [first], "count": [count]})

    def cut(self, rows: Callable[[int], int], together: int = 1) -> Iterator[Task]:
        """Tasks that are made as they are taken.

        Args:
            rows: how many requests the next one should have, of so many that are left.
            together: requests that go through a model at once. Where tasks are that long, each begins with
                such a batch: the last bits of a row then do not hang on where a task happens to begin.
        """
        left = sum(shard.rows for shard in self.shards)
        for shard in self.shards:
            first = 0
            while first < shard.rows:
                rest, wanted = shard.rows - first, max(1, rows(left))
                # In even parts: what little is left over at the end of a shard would be a task, too.
                count = -(-rest // max(1, round(rest / wanted)))
                if wanted >= together:
                    count = min(rest, max(1, round(count / together)) * together)
                yield Task(shard.name, first, count)
                first, left = first + count, left - count

    def reader(self) -> Reader:
        """Reads the slice of a shard that a task names."""
        return ShardReader(self.files)


class ShardReader:
    """Reads slices of a plan's shards in a worker; keeps the last shard, for slices come nearly in order."""

    def __init__(self, files: OutputFiles) -> None:
        # Not ``files`` itself: it knows the output's lock, which stays with the driver.
        self._uri, self._options = files.uri, files.options
        self._name, self._shard = "", pa.table({})

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """The requests of each slice in ``task``."""
        for row in task.to_pylist():
            if row["shard"] != self._name:
                data = OutputFiles(self._uri, self._options).read(row["shard"])
                self._name, self._shard = row["shard"], read_shard(data)
            yield self._shard.slice(row["first"], row["count"])

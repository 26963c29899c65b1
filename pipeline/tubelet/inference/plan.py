"""What is left to do: the manifest's rows without those that the output holds, as small request rows."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tubelet.corpus.digests import digests
from tubelet.inference.output import OutputFiles, parquet_bytes
from tubelet.inference.published import Published
from tubelet.inference.schema import REQUEST_SCHEMA
from tubelet.inference.second_look import SecondLook
from tubelet.inference.windows import Windows
from tubelet.inference.workers import Reader
from tubelet.video import TRANSIENT, Status

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
# Models are bits of an int64.
MAX_MODELS = 62
_SHARD_ROWS = 4096


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
    requests = _ShardWriter(files, f"{folder}/shard", encode_requests, plan.shards)
    errors = _ShardWriter(files, f"{folder}/errors", _encode_errors, plan.known_errors)
    for listed in _slices(manifest):
        rows = listed
        if windows is not None and look is not None:
            rows = _looked_into(listed, published, look, retry_errors)
        candidates = list(_candidates(rows, windows))
        keys.append(np.unique(digests([row["key"] for row in candidates])))
        for row in _left(candidates, published, plan, retry_errors):
            if row["status"] == Status.ERROR and (windows is not None or row["error_code"] not in TRANSIENT):
                _note_error(plan, row)
                errors.add(row)
                continue
            row["request"] = plan.requests
            plan.requests += 1
            plan.largest_pixels = max(plan.largest_pixels, (row["width"] or 0) * (row["height"] or 0))
            requests.add(row)
    requests.flush()
    errors.flush()
    plan.objects = len(np.unique(np.concatenate(keys))) if keys else 0
    return plan


def _slices(manifest: Iterable[pa.Table]) -> Iterator[list[dict[str, Any]]]:
    for table in manifest:
        columns = [name for name in MANIFEST_COLUMNS if name in table.column_names]
        for batch in table.select(columns).to_batches(max_chunksize=_SHARD_ROWS):
            yield batch.to_pylist()


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


def _note_error(plan: Plan, row: Mapping[str, Any]) -> None:
    code = str(row["error_code"])
    plan.reasons[code] += 1
    plan.examples.setdefault(code, str(row["error"]))


def _candidates(rows: list[dict[str, Any]], windows: Windows | None) -> Iterator[dict[str, Any]]:
    """One request per manifest row, or one per window; segments of one object are its windows."""
    for row in rows:
        if row["status"] in (Status.GONE, Status.NOT_VIDEO):
            continue
        row["etag"] = row["etag"] or ""
        row["size"] = -1 if row["size"] is None else row["size"]
        start_s, end_s = row.get("clip_start_s"), row.get("clip_end_s")
        if windows is None or row["status"] == Status.ERROR:
            yield row | {"window": row.get("segment") or 0}
            continue
        from_s = start_s or 0.0
        duration_s = (row.get("duration_s") or 0.0 if end_s is None else end_s) - from_s
        for window, (one_s, two_s) in enumerate(windows.of(duration_s)):
            yield row | {"window": window, "clip_start_s": from_s + one_s, "clip_end_s": from_s + two_s}


def _left(
    rows: list[dict[str, Any]], published: Sequence[Published], plan: Plan, retry_errors: bool
) -> Iterator[dict[str, Any]]:
    """Rows that some model has not published yet, with the bits of these models."""
    plan.rows += len(rows)
    places = digests([row["key"] for row in rows], [row["window"] for row in rows])
    contents = digests([row["etag"] for row in rows])
    bits: npt.NDArray[np.int64] = np.zeros(len(rows), np.int64)
    for number, index in enumerate(published):
        done = index.is_done(places, contents, retry_errors=retry_errors)
        plan.already_done[number] += int(done.sum())
        plan.already_failed[number] += int(index.failed[index.locate(places)[done]].sum())
        bits |= np.where(done, 0, 1 << number)
    for row, models in zip(rows, bits.tolist(), strict=True):
        if models:
            yield row | {"models": models}


class _ShardWriter:
    """Gathers rows into files of a plan, a few thousand each."""

    def __init__(
        self,
        files: OutputFiles,
        prefix: str,
        encode: Callable[[Sequence[dict[str, Any]]], bytes],
        shards: list[Shard],
    ) -> None:
        self._files, self._prefix, self._encode, self._shards = files, prefix, encode, shards
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            name = f"{self._prefix}-{len(self._shards):06d}.parquet"
            self._files.write(name, self._encode(self._rows))
            self._shards.append(Shard(name, len(self._rows)))
            self._rows = []


def encode_requests(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Request rows as a Parquet file."""
    columns = {name: [row.get(name) for row in rows] for name in REQUEST_SCHEMA.names}
    for name in ("clip_start_s", "clip_end_s"):
        columns[name] = [math.nan if value is None else value for value in columns[name]]
    return parquet_bytes(pa.table(columns, schema=REQUEST_SCHEMA))


def _encode_errors(rows: Sequence[dict[str, Any]]) -> bytes:
    named = [row | {"start_s": row.get("clip_start_s"), "end_s": row.get("clip_end_s")} for row in rows]
    return parquet_bytes(pa.Table.from_pylist(named, schema=_KNOWN_ERROR_SCHEMA))


def read_shard(data: bytes) -> pa.Table:
    """The rows of one of a plan's files."""
    return pq.read_table(io.BytesIO(data))


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

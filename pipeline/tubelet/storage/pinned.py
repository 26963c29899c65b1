"""A Parquet file read from one version of its object, although others may replace it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tubelet._version import NewerSchemaError, check_schema_version
from tubelet.config import UserError
from tubelet.storage.base import ObjectInfo, StorageOptions
from tubelet.storage.errors import ObjectChangedError
from tubelet.storage.opener import ObjectOpener
from tubelet.storage.retries import with_retries

if TYPE_CHECKING:
    import pyarrow.dataset as ds  # imports pandas

_T = TypeVar("_T")


@dataclass(frozen=True)
class ParquetSource:
    """Parquet data: its schema, and functions that read columns, whole or in slices of so many rows."""

    schema: pa.Schema
    read: Callable[[list[str]], pa.Table]
    slices: Callable[[list[str], int], Iterator[pa.Table]]

    @classmethod
    def of_dataset(cls, dataset: ds.Dataset) -> ParquetSource:
        """Several files."""

        def slices(columns: list[str], rows: int) -> Iterator[pa.Table]:
            # One file and few batches ahead: more would be held at once, at any size of the dataset.
            reading = {"batch_readahead": 1, "fragment_readahead": 1}
            for batch in dataset.to_batches(columns=columns, batch_size=rows, **reading):
                yield pa.Table.from_batches([batch])

        return cls(dataset.schema, lambda columns: dataset.to_table(columns=columns), slices)

    @classmethod
    def of_file(cls, file: pq.ParquetFile) -> ParquetSource:
        """One file."""

        def slices(columns: list[str], rows: int) -> Iterator[pa.Table]:
            for group in range(file.num_row_groups):  # Arrow fetches all that it is asked for at once
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                    yield pa.Table.from_batches([batch])

        return cls(file.schema_arrow, file.read, slices)


def open_parts(found: Sequence[ObjectInfo], options: StorageOptions) -> ParquetSource:
    """The Parquet files ``found``, of one schema, from footers to columns as they were found.

    Ranged reads of a file that is replaced meanwhile would mix two. One file is open at a time.

    Raises:
        ObjectChangedError: one was replaced or taken away; also from what reads them.
        UserError: a newer tubelet wrote it, otherwise than this one can read.
    """

    def opened(info: ObjectInfo) -> ParquetSource:
        with _taken_away(info):
            pinned = ObjectOpener(info.uri, info.size_bytes, info.etag, options)()
            return ParquetSource.of_file(pq.ParquetFile(pinned, pre_buffer=True))

    first = checked(opened(found[0]), found[0].uri)

    def each() -> Iterator[tuple[ObjectInfo, ParquetSource]]:
        yield found[0], first
        for info in found[1:]:
            yield info, opened(info)

    def read(columns: list[str]) -> pa.Table:
        tables = []
        for info, source in each():
            with _taken_away(info):
                tables.append(source.read(columns))
        return pa.concat_tables(tables)

    def slices(columns: list[str], rows: int) -> Iterator[pa.Table]:
        for info, source in each():
            with _taken_away(info):
                yield from source.slices(columns, rows)

    return ParquetSource(first.schema, read, slices)


@contextmanager
def _taken_away(info: ObjectInfo) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectChangedError(f"{info.uri} was replaced since it was found") from error


def checked(source: ParquetSource, uri: str) -> ParquetSource:
    """``source``, which lies at ``uri``, if this tubelet can read its version of the schema.

    Raises:
        UserError: it cannot.
    """
    try:
        check_schema_version(source.schema.metadata, uri)
    except NewerSchemaError as error:
        raise UserError(str(error)) from error
    return source


def retry_if_changed(read: Callable[[], _T]) -> _T:
    """What ``read`` gives, tried again if the file was replaced under it.

    Raises:
        ObjectChangedError: it was replaced five times in a row: more often than it can be read.
    """
    return with_retries(read, retry_on=ObjectChangedError, attempts=5, first_pause_s=0.05, most_pause_s=0.5)

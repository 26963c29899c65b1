"""A Parquet file read from one version of its object, although others may replace it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.opener import ObjectOpener
from pipeline.corpus.storage import ObjectChangedError, ObjectInfo, StorageOptions

# A file that is replaced more often than it can be read is none.
_TRIES = 5
_T = TypeVar("_T")


@dataclass(frozen=True)
class ParquetSource:
    """Parquet data: its schema, and a function that reads columns."""

    schema: pa.Schema
    read: Callable[[list[str]], pa.Table]


def open_pinned(found: ObjectInfo, options: StorageOptions) -> ParquetSource:
    """The Parquet file ``found``, from footer to columns as it was found: ranged reads of a file that is
    replaced meanwhile would mix two.

    Raises:
        ObjectChangedError: it was replaced; also from ``read``.
    """
    pinned = ObjectOpener(found.uri, found.size_bytes, found.etag, options)()
    file = pq.ParquetFile(pinned, pre_buffer=True)
    return ParquetSource(file.schema_arrow, file.read)


def undisturbed(read: Callable[[], _T]) -> _T:
    """What ``read`` gives, tried again if the file was replaced under it."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except ObjectChangedError:
            continue
    return read()

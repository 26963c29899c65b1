"""List a corpus once into a local file, with the label and the split of each object.

What the user must mend (nothing listed, labels that match nothing, a split that fits nothing) comes out here,
before the first video is opened; and memory stays flat, whatever the number of objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.labels import Labels
from tubelet.corpus.manifest import key_of, schema_with
from tubelet.corpus.splits import SplitRule
from tubelet.storage import ObjectInfo, StorageOptions

_BATCH_ROWS = 2000
_COLUMNS = ("key", "segment", "uri", "path", "etag", "size", "split", "group")


class Listing:
    """The objects of a corpus on local disk, in batches of rows.

    Attributes:
        objects, labelled: how many there are, and how many have a label in some head.
        by_split: objects by split.
        heads: the label columns, and whether each is multi-label.
    """

    def __init__(self, file: Path, heads: dict[str, bool]) -> None:
        self._file = file
        self.heads = heads
        self.objects = 0
        self.labelled = 0
        self.by_split: Counter[str] = Counter()
        self.warnings: list[str] = []

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """The rows, a bounded number at a time."""
        with pa.memory_map(str(self._file)) as source:
            for batch in pa.ipc.open_stream(source):
                yield batch.to_pylist()


@contextmanager
def list_corpus(
    src: str,
    options: StorageOptions,
    labels: Labels,
    split: SplitRule,
    *,
    include: str | None = None,
    leave_out: Callable[[ObjectInfo], bool] = lambda info: False,
    on_objects: Callable[[int], None] = lambda count: None,
) -> Iterator[Listing]:
    """List ``src``, label and split what is there; the listing lives as long as the block.

    Args:
        leave_out: objects that are none of the corpus (the label file, the output).
        on_objects: told how many more were listed, for the progress.

    Raises:
        UserError: nothing is left to index, or the labels or the split fit nothing.
    """
    with TemporaryDirectory(prefix="tubelet-") as folder:
        listing = Listing(Path(folder) / "listing.arrow", labels.heads)
        found = storage.list_objects(src, options, include)
        objects = (info for info in found if not leave_out(info))
        schema = _schema(labels)
        with pa.ipc.new_stream(str(listing._file), schema) as writer:
            for rows in in_batches(_row(info, labels, split, listing) for info in objects):
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                on_objects(len(rows))
        if not listing.objects:
            raise _nothing_listed(src, include)
        listing.warnings += labels.check() + split.check(dict(listing.by_split))
        yield listing


def _schema(labels: Labels) -> pa.Schema:
    full = schema_with(labels.heads)
    return pa.schema([full.field(name) for name in full.names if name in _COLUMNS or name in labels.heads])


def _row(info: ObjectInfo, labels: Labels, split: SplitRule, listing: Listing) -> dict[str, Any]:
    key, known = key_of(info.path), labels.lookup(info)
    assigned = split.assign(key, info.path, known)
    listing.objects += 1
    listing.labelled += any(known.values.values())
    if assigned.split is not None:
        listing.by_split[assigned.split] += 1
    return {
        "key": key,
        "segment": 0,
        "uri": info.uri,
        "path": info.path,
        "etag": info.etag,
        "size": info.size_bytes,
        **{head: known.values.get(head) for head in labels.heads},
        "split": assigned.split,
        "group": assigned.group,
    }


def in_batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most 2,000 rows."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _nothing_listed(src: str, include: str | None) -> UserError:
    if include is not None:
        return UserError(f"no object under {src} matches --include {include!r}: check the pattern")
    return UserError(
        f"there are no videos under {src}: names that begin with `.` and folders that begin with `.` or `_` "
        "do not count; check the path"
    )

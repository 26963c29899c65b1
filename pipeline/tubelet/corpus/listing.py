"""List a corpus once into a local file, with the label and the split of each object.

What the user must mend (nothing listed, labels that match nothing, a split that fits nothing) comes out here,
before the first video is opened; and memory stays flat, whatever the number of objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.inventory import read_inventory
from tubelet.corpus.labels import Labels
from tubelet.corpus.manifest import key_of, schema_with
from tubelet.corpus.parts import Row, packed
from tubelet.corpus.splits import SplitRule
from tubelet.storage import ObjectInfo, StorageOptions

_BATCH_ROWS = 2000
_COLUMNS = ("key", "segment", "uri", "path", "etag", "size", "split", "group", "corrected_at")


class RowFile:
    """Rows on local disk, so that memory does not grow with their number: all written, then read."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self._waiting: list[Row] = []
        self._closed = False
        self.rows = 0

    def add(self, row: Row) -> None:
        """One more row; columns that the schema lacks are left out."""
        self.rows += 1
        self._waiting.append({name: row.get(name) for name in self._schema.names})
        if len(self._waiting) == _BATCH_ROWS:
            self._flush()

    def tables(self) -> Iterator[pa.RecordBatch]:
        """All rows in the order they came in, a bounded number at a time; no more can be added."""
        self._flush()
        if self._writer is None:
            return
        if not self._closed:
            self._writer.close()
            self._closed = True
        with pa.OSFile(str(self._file)) as source:
            yield from pa.ipc.open_stream(source)

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._file), self._schema)
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []


class Listing:
    """The objects of a corpus on local disk, in batches of rows.

    Attributes:
        schema: the columns of the rows.
        heads: the label columns, and whether each is multi-label.
        objects, labelled: how many there are, and how many have a label in some head.
        by_split: objects by split.
        skipped: objects that do not count, by the reason.
        warnings: what the labels and the splits had to say.
    """

    def __init__(self, folder: Path, schema: pa.Schema, heads: dict[str, bool]) -> None:
        self._folder, self.schema = folder, schema
        self._rows = self.row_file("listing")
        self.heads = heads
        self.objects = 0
        self.labelled = 0
        self.by_split: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.warnings: list[str] = []

    def row_file(self, name: str, columns: Iterable[str] | None = None) -> RowFile:
        """An empty file of rows with the columns of the listing, or some of them, which lives as long."""
        chosen = self.schema if columns is None else [self.schema.field(column) for column in columns]
        return RowFile(self._folder / f"{name}.arrow", pa.schema(chosen))

    def add(self, row: Row) -> None:
        """One more object."""
        self.objects += 1
        self.labelled += row["segments"] is not None or any(row[head] for head in self.heads)
        if row["split"] is not None:
            self.by_split[row["split"]] += 1
        self._rows.add(row)

    def tables(self) -> Iterator[pa.RecordBatch]:
        """The rows, a bounded number at a time."""
        return self._rows.tables()


@contextmanager
def list_corpus(
    src: str,
    options: StorageOptions,
    labels: Labels,
    split: SplitRule,
    *,
    include: str | None = None,
    listing_file: str | None = None,
    leave_out: Callable[[ObjectInfo], bool] = lambda info: False,
    is_label_file: Callable[[ObjectInfo], bool] = lambda info: False,
    forgotten: Collection[str] = (),
    on_objects: Callable[[int], None] = lambda count: None,
) -> Iterator[Listing]:
    """List ``src``, label and split what is there; the listing lives as long as the block.

    Args:
        src: what to list.
        options: how to reach the store.
        labels: where labels come from.
        split: assigns splits.
        listing_file: a listing that exists already (see ``tubelet.corpus.inventory``).
        include: a glob; what it does not match is skipped.
        leave_out: objects that are the job's own output: not even counted.
        is_label_file: a label file among the videos is skipped.
        forgotten: keys of objects that are to stay out.
        on_objects: told how many more were listed, for the progress.

    Yields:
        The listing.

    Raises:
        UserError: nothing is left to index, or the labels or the split fit nothing.
    """
    with TemporaryDirectory(prefix="tubelet-") as folder:
        listing = Listing(Path(folder), _schema(labels), labels.heads)

        def skip(info: ObjectInfo) -> None:
            if not leave_out(info):
                why = "names and folders with `.` or `_`" if storage.is_hidden(info.path) else "--include"
                listing.skipped[why] += 1

        if listing_file is None:
            found = storage.list_objects(src, options, include, on_skipped=skip)
        else:
            found = _chosen(read_inventory(listing_file, src, options), include, skip)
        for info in found:
            if is_label_file(info):
                listing.skipped["the label file"] += 1
            elif forgotten and key_of(info.path) in forgotten:
                listing.skipped["forgotten"] += 1
            elif not leave_out(info):
                listing.add(_row(info, labels, split))
                if listing.objects % _BATCH_ROWS == 0:
                    on_objects(_BATCH_ROWS)
        on_objects(listing.objects % _BATCH_ROWS)
        if not listing.objects:
            raise _nothing_listed(src, include)
        listing.warnings += labels.check() + split.check(dict(listing.by_split))
        yield listing


def _chosen(
    objects: Iterable[ObjectInfo], include: str | None, skip: Callable[[ObjectInfo], None]
) -> Iterator[ObjectInfo]:
    """The objects that count, as :func:`tubelet.storage.list_objects` chooses them."""
    for info in objects:
        if storage.is_hidden(info.path) or (include is not None and not storage.matches(info.path, include)):
            skip(info)
        else:
            yield info


def _schema(labels: Labels) -> pa.Schema:
    full = schema_with(labels.heads)
    columns = [full.field(name) for name in full.names if name in _COLUMNS or name in labels.heads]
    return pa.schema([*columns, pa.field("named", pa.bool_()), pa.field("segments", pa.string())])


def _row(info: ObjectInfo, labels: Labels, split: SplitRule) -> Row:
    key, known = key_of(info.path), labels.lookup(info)
    assigned = split.assign(key, info.path, known)
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
        "corrected_at": known.corrected_at,
        "named": known.named,
        "segments": packed(known.segments),
    }


def _nothing_listed(src: str, include: str | None) -> UserError:
    if include is not None:
        return UserError(f"no object under {src} matches --include {include!r}: check the pattern")
    return UserError(
        f"there are no videos under {src}: names that begin with `.` and folders that begin with `.` or `_` "
        "do not count; check the path"
    )

"""Takes keys out of whatever lies below a place: rows of tables, copies of videos, pages that show them."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.corpus.beside import notes_folder, report_of
from tubelet.corpus.manifest import ManifestSlices, is_manifest, made_from
from tubelet.corpus.publication import manifest_writer
from tubelet.corpus.tombstones import forget_keys
from tubelet.corpus.versions import drop_earlier, is_one_file, staging_folder
from tubelet.inference.feature_table import features_of
from tubelet.inference.output import OutputFiles
from tubelet.storage import ObjectInfo, StorageOptions
from tubelet.storage.lock import OutputLock
from tubelet.storage.pinned import retry_if_changed

JOB = "tubelet forget"
# What lies there shows videos: it is made again from the rows.
_PAGES = "/_review/"


@dataclass
class Taken:
    """What went.

    Attributes:
        rows: of tables, features included.
        copies: training copies.
        pages: pages, sheets of pictures and the like, which may show the video.
    """

    rows: int = 0
    copies: int = 0
    pages: int = 0

    def add(self, other: Taken) -> None:
        """Both together."""
        self.rows += other.rows
        self.copies += other.copies
        self.pages += other.pages


def forget_in(place: str, keys: Collection[str], options: StorageOptions) -> Taken:
    """Take ``keys`` out of the manifest or output at ``place``, and leave a tombstone in a manifest.

    Doing it again does no harm: what was stopped half-way is done to the end.

    Raises:
        UserError: another job writes there.
    """
    root, taken = storage.normalise_uri(place), Taken()
    with OutputLock(root, job=JOB, options=options) as lock:
        if is_manifest(root, options):
            # First of all, so that an index which runs after a stop does not bring them back.
            forget_keys(root, keys, options)
            taken.rows += retry_if_changed(lambda: _rewrite_manifest(root, keys, options))
            drop_earlier(root, options)  # versions before, which have the rows
            around = [notes_folder(root), staging_folder(root)]
            if is_one_file(root):
                around.append(features_of(root))
            _remove(report_of(root), taken, options)
        else:
            around = []
        for folder in dict.fromkeys([root, *around]):
            if not storage.exists(folder, options):
                continue
            files = OutputFiles(folder, options, lock.check, JOB)
            for info in list(storage.walk(folder, options)):
                _take_out(info, files, frozenset(keys), taken)
    return taken


def _rewrite_manifest(root: str, keys: Collection[str], options: StorageOptions) -> int:
    """The manifest without the rows of ``keys``; returns how many these were."""
    slices = ManifestSlices.open(root, options=options)
    tables = iter(slices)
    first = next(tables, None)
    if first is None:
        return 0
    removed, gone = 0, pa.array(sorted(keys), pa.string())
    made = made_from(root, options)
    with manifest_writer(root, first.schema, made_from=made, options=options) as write:
        for table in (first, *tables):
            kept = table.filter(pc.invert(pc.is_in(table["key"], gone)))
            removed += table.num_rows - kept.num_rows
            write(_without_pointers(kept, gone))
    return removed


def _without_pointers(table: pa.Table, gone: pa.Array) -> pa.Table:
    """``duplicate_of`` must not lead to what is forgotten."""
    if "duplicate_of" not in table.column_names:
        return table
    column = table["duplicate_of"]
    cleared = pc.if_else(pc.is_in(column, gone), pa.scalar(None, column.type), column)
    return table.set_column(table.column_names.index("duplicate_of"), "duplicate_of", cleared)


def _take_out(info: ObjectInfo, files: OutputFiles, keys: frozenset[str], taken: Taken) -> None:
    name = info.path.rpartition("/")[2]
    if _PAGES in f"/{info.path}" or name.endswith(".html"):
        _remove(info.uri, taken, files.options)
    elif name[:32] in keys and name.endswith(".mp4"):
        storage.delete(info.uri, files.options)
        taken.copies += 1
    elif name.endswith(".parquet"):
        taken.rows += _rewrite_table(info, files, keys)


def _remove(uri: str, taken: Taken, options: StorageOptions) -> None:
    if storage.stat(uri, options) is not None:
        storage.delete(uri, options)
        taken.pages += 1


def _rewrite_table(info: ObjectInfo, files: OutputFiles, keys: frozenset[str]) -> int:
    """One Parquet file without rows of ``keys``, where it has some; returns how many."""
    filesystem, path = storage.filesystem(info.uri, files.options)
    gone = pa.array(sorted(keys), pa.string())
    with filesystem.open_input_file(path) as source:
        file = pq.ParquetFile(source)
        if "key" not in file.schema_arrow.names:
            return 0
        found = pc.sum(pc.is_in(file.read(["key"])["key"].cast(pa.string()), gone)).as_py() or 0
    if not found:
        return 0

    def without(data: bytes) -> bytes:
        table = pq.read_table(io.BytesIO(data))
        kept = table.filter(pc.invert(pc.is_in(table["key"].cast(pa.string()), gone)))
        buffer = io.BytesIO()
        pq.write_table(kept, buffer, compression="zstd")
        return buffer.getvalue()

    relative = OutputFiles(storage.parent(info.uri), files.options, files.check_owner, JOB)
    relative.rewrite(storage.name_of(info.uri), without)
    return int(found)

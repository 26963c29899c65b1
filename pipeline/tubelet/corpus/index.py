"""Make the manifest of a bucket, or bring it up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from tubelet import storage
from tubelet._version import __version__
from tubelet.config import Option, Settings, UserError
from tubelet.corpus.earlier import Earlier, check_output
from tubelet.corpus.labels import FOLDERS, load_labels
from tubelet.corpus.listing import Listing, in_batches, list_corpus
from tubelet.corpus.manifest import manifest_writer, schema_with
from tubelet.corpus.probing import Prober, default_workers
from tubelet.corpus.splits import parse_split, split_column_of
from tubelet.progress import ProgressLine
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, StorageOptions
from tubelet.storage.lock import OutputLock
from tubelet.storage.opener import ObjectOpener
from tubelet.video import ErrorCode

# If none of so many objects can be read, the fault is the store's or ours: end the job, not ten hours later.
_ENOUGH = 200
# Of all of the first objects: the fault is not in the videos.
_UNREADABLE = frozenset(
    {
        ErrorCode.NOT_FOUND,
        ErrorCode.DENIED,
        ErrorCode.CHANGED,
        ErrorCode.IO_ERROR,
        ErrorCode.INTERNAL_ERROR,
    }
)


class IndexConfig(Settings):
    """What to index, and where to.

    On an update, ``labels``, ``split`` and ``include`` stay what the manifest was made with unless given.
    """

    src: Annotated[str, Option(argument=True, metavar="SRC")]
    """Folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; everything below it counts."""
    out: Annotated[str, Option(metavar="MANIFEST")]
    """Where to: a folder, or a name ending in .parquet."""
    labels: Annotated[str | None, Option(metavar="FILE|folders")] = None
    """CSV or Parquet with path (or uri) and label; or folders, where each class has one."""
    split: Annotated[str | None, Option(metavar="SPEC")] = None
    """train=0.8,val=0.1,test=0.1; column:NAME; group:REGEX."""
    include: Annotated[str | None, Option(metavar="GLOB")] = None
    """Only these, for example '*.mp4'."""
    update: Annotated[bool, Option()] = False
    """Bring an existing manifest up to date; opens only what changed."""
    workers: Annotated[int | None, Option(), Field(ge=1, le=256)] = None
    """Videos opened at once (default: twice the cores)."""
    deadline_s: float = Field(default=60.0, gt=0)
    """Seconds a video may take to probe, before it counts as an error."""
    options: StorageOptions = DEFAULT_OPTIONS
    """How to read ``src``."""
    dry_run: Annotated[bool, Option()] = False
    """Say what the job would do, and stop."""


@dataclass(frozen=True)
class IndexSummary:
    """What an index job did.

    Attributes:
        objects: objects there are now, of which ``ok`` are usable videos and ``errors`` are not.
        probed: objects opened by this job; ``unchanged`` were taken over from the manifest before.
        removed: objects that are gone since then (their rows stay, with status ``gone``).
        labelled: objects with a label.
        splits: objects by split.
        to_probe: objects a dry run would have opened.
    """

    out: str
    objects: int
    ok: int
    errors: int
    probed: int
    unchanged: int
    removed: int
    labelled: int
    splits: dict[str, int]
    to_probe: int = 0
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON summary."""
        return asdict(self)


def index_corpus(config: IndexConfig) -> IndexSummary:
    """List ``config.src``, probe what is new or changed, and publish the manifest at ``config.out``.

    Each object becomes a row: a video that cannot be opened has status ``error`` and a typed reason. The
    manifest appears whole at the end; until then readers see the one before.

    Raises:
        UserError: anything the user can mend (see DESIGN: bad input gets a clear error).
    """
    return _Index(config).run()


class _Index:
    """One index job."""

    def __init__(self, config: IndexConfig) -> None:
        self.src = storage.normalise_uri(config.src)
        self.out = storage.normalise_uri(config.out)
        self.config = config
        self.now = datetime.now(UTC).replace(tzinfo=None)

    def run(self) -> IndexSummary:
        exists = check_output(self.out, update=self.config.update)
        with (
            nullcontext()
            if self.config.dry_run
            else OutputLock(self.out, options=self.config.options) as lock
        ):
            earlier = Earlier(self.out if exists else None)
            self._remember(earlier.made_from)
            with self._list() as listing:
                earlier.compare(listing, self.src)
                counts = _Counts()
                if lock is not None:
                    self._write(listing, earlier, counts, lock)
                return self._summary(listing, earlier, counts)

    def _remember(self, known: dict[str, Any]) -> None:
        """An update that names no labels, split or include goes by those the manifest was made with."""
        names = ("labels", "split", "include")
        kept = {
            n: known.get(n) for n in names if getattr(self.config, n) is None and known.get(n) is not None
        }
        self.config = self.config.model_copy(update=kept)

    @contextmanager
    def _list(self) -> Iterator[Listing]:
        config = self.config
        labels = load_labels(config.labels, self.src, self._label_options(), split_column_of(config.split))
        split = parse_split(config.split, labels)
        with ExitStack() as stack:
            with ProgressLine("listing", None, "objects") as line:
                listing = stack.enter_context(
                    list_corpus(
                        self.src,
                        config.options,
                        labels,
                        split,
                        include=config.include,
                        leave_out=self._is_ours,
                        on_objects=line.advance,
                    )
                )
            yield listing

    def _label_options(self) -> StorageOptions:
        """``--anonymous`` is for the bucket of the videos; a label file elsewhere may need credentials."""
        labels = self.config.labels
        if labels is None or labels == FOLDERS or not storage.is_remote(labels):
            return self.config.options
        same = storage.is_remote(self.src) and self.src.split("/")[2] == labels.split("/")[2]
        return self.config.options if same else DEFAULT_OPTIONS

    def _is_ours(self, info: ObjectInfo) -> bool:
        """The label file and the manifest may lie among the videos, but are none of the corpus."""
        labels = self.config.labels
        if labels not in (None, FOLDERS) and info.uri == storage.normalise_uri(str(labels)):
            return True
        return info.uri == self.out or info.uri.startswith(self.out + "/")

    def _write(self, listing: Listing, earlier: Earlier, counts: _Counts, lock: OutputLock) -> None:
        if earlier.first_to_probe is not None:
            self._check_readable(earlier.first_to_probe)
        schema = schema_with(listing.heads)
        workers = min(self.config.workers or default_workers(), max(earlier.to_probe, 1))
        with (
            Prober(workers, self.config.options, self.config.deadline_s) as prober,
            manifest_writer(self.out, schema, made_from=self._made_from()) as write,
        ):
            with ProgressLine("indexing", earlier.to_probe, "videos") as line:
                done = prober.map(earlier.pair(listing), lambda pair: self._row(*pair, prober))
                for rows in in_batches(counts.watch(done, line)):
                    write(pa.Table.from_pylist(rows, schema=schema))
            counts.check()
            for table in earlier.gone(schema):
                write(table)
            lock.check()

    def _row(
        self, row: dict[str, Any], reused: dict[str, Any] | None, prober: Prober
    ) -> tuple[dict[str, Any], bool]:
        """The manifest's row of an object, and whether it had to be opened."""
        if reused is not None:
            return {**row, **reused}, False
        info = ObjectInfo(row["uri"], row["path"], row["etag"], row["size"])
        return {**row, **prober.probe(info), "indexed_at": self.now}, True

    def _check_readable(self, row: dict[str, Any]) -> None:
        """A listing that is allowed while reading is not would make an error of every object."""
        if not storage.is_remote(self.src):
            return
        try:
            ObjectOpener(row["uri"], row["size"], row["etag"], self.config.options)().read(1)
        except PermissionError as error:
            raise UserError(
                f"the objects under {self.src} can be listed, but not read: {error}\n"
                "give the credentials the right to read (s3:GetObject)"
            ) from error
        except OSError:
            pass  # this one object; it becomes a row

    def _made_from(self) -> dict[str, Any]:
        config = self.config
        labels = (
            config.labels if config.labels in (None, FOLDERS) else storage.normalise_uri(str(config.labels))
        )
        return {
            "src": self.src,
            "labels": labels,
            "split": config.split,
            "include": config.include,
            "version": __version__,
        }

    def _summary(self, listing: Listing, earlier: Earlier, counts: _Counts) -> IndexSummary:
        return IndexSummary(
            out=self.out,
            objects=listing.objects,
            ok=counts.ok,
            errors=counts.errors,
            probed=counts.probed,
            unchanged=earlier.unchanged,
            removed=earlier.removed,
            labelled=listing.labelled,
            splits=dict(sorted(listing.by_split.items())),
            to_probe=earlier.to_probe,
            dry_run=self.config.dry_run,
            warnings=listing.warnings,
        )


@dataclass
class _Counts:
    ok: int = 0
    errors: int = 0
    probed: int = 0
    unreadable: int = 0
    failure: str = ""

    def watch(
        self, rows: Iterator[tuple[dict[str, Any], bool]], line: ProgressLine
    ) -> Iterator[dict[str, Any]]:
        """Pass rows on, counting them."""
        for row, probed in rows:
            failed = row["status"] != "ok"
            self.ok += not failed
            self.errors += failed
            self.probed += probed
            if probed and row["error_code"] in _UNREADABLE:
                self.unreadable += 1
                self.failure = self.failure or f"{row['error_code']}: {row['error']}"
            line.advance(int(probed), errors=self.errors)
            if self.probed == _ENOUGH:
                self.check()
            yield row

    def check(self) -> None:
        """Raises:
        UserError: nothing at all could be read, so the fault is not in the videos.
        """
        if self.probed > 1 and self.unreadable == self.probed:
            raise UserError(
                f"none of the first {self.probed} objects could be read: {self.failure}\n"
                "this is not the videos' fault: check the network and the right to read, then run this again"
            )

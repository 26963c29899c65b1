"""Make the manifest of a bucket, or bring it up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from tubelet import storage
from tubelet._version import __version__
from tubelet.config import Option, Settings
from tubelet.corpus.earlier import RULES, Earlier, check_output
from tubelet.corpus.labels import FOLDERS, load_labels
from tubelet.corpus.listing import Listing, Row, RowFile, in_batches, list_corpus
from tubelet.corpus.manifest import is_label_column, label_columns, manifest_writer, schema_with
from tubelet.corpus.probed import Probed, staging_folder
from tubelet.corpus.probing import Prober, default_workers, judge
from tubelet.corpus.splits import parse_split, split_column_of
from tubelet.corpus.tally import IndexTally
from tubelet.error_rate import MaxErrorRate
from tubelet.progress import ProgressLine
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, StorageOptions
from tubelet.storage.lock import OutputLock, lock_folder
from tubelet.video import TRANSIENT, Status


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
    retry_errors: Annotated[bool, Option()] = False
    """With --update: open all objects again that had an error, whatever the error."""
    max_error_rate: Annotated[MaxErrorRate, Option()] = 0.2
    """End when more of the last thousand failed for the store's or the machine's doing."""
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
        out: where the manifest lies.
        objects: objects there are now: ``ok`` usable videos, ``errors`` others, and ``not_video``, which
            content and name say are something else.
        probed: objects opened by this job; ``unchanged`` were taken over from the manifest before, or from a
            run that did not come to its end.
        removed: objects that are gone since then (their rows stay, with status ``gone``).
        labelled: videos with a label.
        splits: videos by split.
        skipped: objects that do not count: hidden names, what ``include`` leaves out, the label file.
        to_retry: errors of the store's or the machine's doing; the next update tries them again.
        reasons: errors by code.
        skipped_by: ``skipped`` by the reason.
        to_probe: objects a dry run would have opened.
        dry_run: nothing was written; labels and splits are those of all objects.
        warnings: what the user should know.
    """

    out: str
    objects: int
    ok: int
    errors: int
    not_video: int
    skipped: int
    probed: int
    unchanged: int
    removed: int
    labelled: int
    splits: dict[str, int]
    to_retry: int
    reasons: dict[str, int]
    skipped_by: dict[str, int]
    to_probe: int = 0
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON summary."""
        return asdict(self)


def index_corpus(config: IndexConfig) -> IndexSummary:
    """List ``config.src``, probe what is new or changed, and publish the manifest at ``config.out``.

    Each object becomes a row: a video that cannot be opened has status ``error`` and a typed reason. The
    manifest appears whole at the end; until then readers see the one before. What a job found that did not
    come to its end is kept: the same command goes on from there.

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
        config = self.config
        with nullcontext() if config.dry_run else OutputLock(self.out, options=config.options) as lock:
            earlier = Earlier(self.out if exists else None, retry_errors=config.retry_errors)
            self._remember(earlier.made_from)
            with self._list() as listing:
                earlier.compare(listing, self.src)
                if lock is None:
                    return self._summary(listing, earlier, None)
                tally = IndexTally(self.src, self.config.max_error_rate)
                self._probed = Probed(self.out)
                self._write(listing, earlier, tally, lock)
                return self._summary(listing, earlier, tally)

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
                        is_label_file=self._is_label_file,
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

    def _is_label_file(self, info: ObjectInfo) -> bool:
        """It may lie among the videos, but is none of the corpus."""
        labels = self.config.labels
        return labels not in (None, FOLDERS) and info.uri == storage.normalise_uri(str(labels))

    def _is_ours(self, info: ObjectInfo) -> bool:
        """So may the manifest, its lock, and what is kept of it while it is made."""
        folders = (self.out, lock_folder(self.out), staging_folder(self.out))
        return info.uri == self.out or info.uri.startswith(tuple(f"{folder}/" for folder in folders))

    def _write(self, listing: Listing, earlier: Earlier, tally: IndexTally, lock: OutputLock) -> None:
        kept = earlier.kept_columns(self.config.labels, listing.heads, self.config.split)
        heads = listing.heads | {n: pa.types.is_list(t) for n, t in kept.items() if is_label_column(n)}
        schema = schema_with(heads)
        workers = min(self.config.workers or default_workers(), max(earlier.to_probe, 1))
        self._heads = label_columns(schema)
        columns = [schema.field(n) for n in [*kept, "attempts"] if n not in listing.schema.names]
        again = listing.row_file("again", *columns)
        with (
            self._probed,
            Prober(workers, self.config.options, self.config.deadline_s) as prober,
            manifest_writer(self.out, schema, made_from=self._made_from()) as write,
        ):
            left = max(earlier.to_probe - len(self._probed), 0)
            with ProgressLine("indexing", left, "videos") as line:
                pairs = prober.map(earlier.pair(listing, kept), lambda pair: self._row(*pair, prober))
                for rows in in_batches(self._first_pass(pairs, again, tally, line)):
                    write(pa.Table.from_pylist(rows, schema=schema))
            tally.check_readable()
            if again.rows:
                with ProgressLine("trying again", again.rows, "videos") as line:
                    waiting = (row for rows in again.batches() for row in rows)
                    probed = prober.map(waiting, lambda row: self._row(row, False, prober)[0])
                    for rows in in_batches(self._second_pass(probed, tally, line)):
                        write(pa.Table.from_pylist(rows, schema=schema))
            for table in earlier.gone(schema):
                write(table)
            lock.check()
        self._probed.forget()

    def _first_pass(
        self, rows: Iterator[tuple[Row, bool]], again: RowFile, tally: IndexTally, line: ProgressLine
    ) -> Iterator[Row]:
        """Rows that are final; what failed in passing waits in ``again``."""
        for found, probed in rows:
            row = found
            if not probed:
                yield self._final(row, tally)
                continue
            tally.watch(row)
            final = row["error_code"] not in TRANSIENT
            if final:
                row = self._final(row, tally)
            else:
                again.add(row)
            line.advance(1, errors=tally.errors)
            if final:
                yield row

    def _second_pass(self, rows: Iterator[Row], tally: IndexTally, line: ProgressLine) -> Iterator[Row]:
        failed: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for row in rows:
            code = row["error_code"]
            if code in TRANSIENT:
                row["attempts"] += 1
                failed[code] += 1
                examples.setdefault(code, row["error"])
            yield self._final(row, tally)
            line.advance(1, errors=tally.errors)
        tally.judge(failed, examples)

    def _final(self, row: Row, tally: IndexTally) -> Row:
        if row["error_code"] not in TRANSIENT:
            row["attempts"] = 0
        if row["status"] == Status.NOT_VIDEO:  # it is none of any class or split
            row |= dict.fromkeys([*self._heads, "split", "group"])
        tally.count(row, self._heads)
        return row

    def _row(self, row: Row, known: bool, prober: Prober) -> tuple[Row, bool]:
        """The manifest's row of an object, and whether it had to be opened."""
        if not known:
            found = self._probed.take(row)
            known = found is not None
            info = ObjectInfo(row["uri"], row["path"], row["etag"], row["size"])
            row = {**row, **(found or {**prober.probe(info), "indexed_at": self.now})}
            if not known:
                self._probed.add(row)
        row["status"] = judge(row, named=row["named"])
        return row, not known

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
            "rules": RULES,
        }

    def _summary(self, listing: Listing, earlier: Earlier, tally: IndexTally | None) -> IndexSummary:
        found = tally or IndexTally(self.src, self.config.max_error_rate)
        return IndexSummary(
            out=self.out,
            objects=listing.objects,
            ok=found.ok,
            errors=found.errors,
            not_video=found.not_video,
            skipped=listing.skipped.total(),
            probed=found.probed,
            unchanged=earlier.unchanged + (0 if tally is None else self._probed.reused),
            removed=earlier.removed,
            labelled=listing.labelled if tally is None else tally.labelled,
            splits=dict(sorted((listing if tally is None else tally).by_split.items())),
            to_retry=found.to_retry,
            reasons=dict(found.reasons.most_common()),
            skipped_by=dict(listing.skipped.most_common()),
            to_probe=earlier.to_probe,
            dry_run=self.config.dry_run,
            warnings=listing.warnings,
        )

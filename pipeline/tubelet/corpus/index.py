"""Make the manifest of a bucket, or bring it up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BeforeValidator, Field

from tubelet import storage
from tubelet._version import __version__
from tubelet.config import Option, Settings
from tubelet.corpus.earlier import RULES, Earlier, check_output
from tubelet.corpus.labels import FOLDERS, load_labels
from tubelet.corpus.listing import Listing, in_batches, list_corpus
from tubelet.corpus.manifest import schema_with
from tubelet.corpus.parts import Row, rows_of
from tubelet.corpus.probed import Probed
from tubelet.corpus.probing import Prober, default_workers, judge
from tubelet.corpus.publication import manifest_writer
from tubelet.corpus.splits import parse_split, split_column_of
from tubelet.corpus.tally import IndexTally
from tubelet.corpus.versions import record_folder, staging_folder
from tubelet.decode_limits import DecodeLimits
from tubelet.error_rate import MaxErrorRate
from tubelet.progress import ProgressLine
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, StorageOptions
from tubelet.storage.lock import OutputLock, lock_folder
from tubelet.video import TRANSIENT, Status


def _as_tuple(value: Any) -> Any:
    return () if value is None else (value,) if isinstance(value, str) else value


class IndexConfig(Settings):
    """What to index, and where to.

    On an update, ``labels``, ``split`` and ``include`` stay what the manifest was made with unless given.
    """

    src: Annotated[str, Option(argument=True, metavar="SRC")]
    """Folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; everything below it counts."""
    out: Annotated[str, Option(metavar="MANIFEST")]
    """Where to: a folder, or a name ending in .parquet."""
    labels: Annotated[tuple[str, ...], Option(metavar="FILE|folders"), BeforeValidator(_as_tuple)] = ()
    """A label file, or folders, where each class has one; may be repeated, the later ones win."""
    split: Annotated[str | None, Option(metavar="SPEC")] = None
    """train=0.8,val=0.1,test=0.1; column:NAME; group:REGEX."""
    include: Annotated[str | None, Option(metavar="GLOB")] = None
    """Only these, for example '*.mp4'."""
    listing: Annotated[str | None, Option(metavar="FILE")] = None
    """A listing that exists already: S3 Inventory's manifest.json, or CSV or Parquet with uri, size, etag."""
    update: Annotated[bool, Option()] = False
    """Bring an existing manifest up to date; opens only what changed."""
    workers: Annotated[int | None, Option(), Field(ge=1, le=256)] = None
    """Videos opened at once (default: twice the cores)."""
    retry_errors: Annotated[bool, Option()] = False
    """With --update: open all objects again that had an error, whatever the error."""
    max_error_rate: Annotated[MaxErrorRate, Option()] = 0.2
    """End when more of the last thousand failed for the store's or the machine's doing."""
    limits: DecodeLimits = DecodeLimits()
    """What opening a video may cost."""
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
        segments: labelled parts of videos, which have rows of their own.
        left_out: clips that a correction without a label keeps out of training.
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
    segments: int
    left_out: int
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
        self._split_before: str | None = None
        self._split_rule = ""

    def run(self) -> IndexSummary:
        exists = check_output(self.out, update=self.config.update)
        config = self.config
        lock_or_not = nullcontext() if config.dry_run else OutputLock(self.out, options=config.options)
        with TemporaryDirectory(prefix="tubelet-") as folder, lock_or_not as lock:
            earlier = Earlier(self.out if exists else None, Path(folder), retry_errors=config.retry_errors)
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
        kept = {
            n: known[n]
            for n in ("split", "include")
            if getattr(self.config, n) is None and known.get(n) is not None
        }
        if self.config.split is None:
            self._split_before = known.get("split_rule") or known.get("split")
        if not self.config.labels:
            kept["labels"] = _as_tuple(known.get("labels"))
        self.config = self.config.model_copy(update=kept)

    @contextmanager
    def _list(self) -> Iterator[Listing]:
        config = self.config
        labels = load_labels(config.labels, self.src, config.options, split_column_of(config.split))
        split = parse_split(config.split, labels, self._split_before)
        self._split_rule = split.spec
        with ExitStack() as stack:
            with ProgressLine("listing", None, "objects") as line:
                listing = stack.enter_context(
                    list_corpus(
                        self.src,
                        config.options,
                        labels,
                        split,
                        include=config.include,
                        listing_file=config.listing,
                        leave_out=self._is_ours,
                        is_label_file=lambda info: info.uri in labels.files,
                        on_objects=line.advance,
                    )
                )
            yield listing

    def _is_ours(self, info: ObjectInfo) -> bool:
        """So may the manifest, its lock, and what is kept of it while it is made."""
        folders = (self.out, lock_folder(self.out), staging_folder(self.out), record_folder(self.out))
        return info.uri == self.out or info.uri.startswith(tuple(f"{folder}/" for folder in folders))

    def _write(self, listing: Listing, earlier: Earlier, tally: IndexTally, lock: OutputLock) -> None:
        heads = {"label": False}
        for name, many in [*listing.heads.items(), *earlier.heads.items()]:
            heads[name] = heads.get(name, False) or many
        schema = schema_with(heads)
        workers = min(self.config.workers or default_workers(), max(earlier.to_probe, 1))
        self._heads = heads
        again: list[Row] = []
        with (
            self._probed,
            Prober(workers, self.config.options, self.config.limits.limits()) as prober,
            manifest_writer(self.out, schema, made_from=self._made_from()) as write,
        ):
            left = max(earlier.to_probe - len(self._probed), 0)
            with ProgressLine("indexing", left, "videos") as line:
                known = earlier.pair(listing, heads, self.config.split)
                pairs = prober.map(known, lambda pair: self._row(*pair, prober))
                for rows in in_batches(self._first_pass(pairs, again, tally, line)):
                    write(pa.Table.from_pylist(rows, schema=schema))
            tally.check_readable()
            if again:
                with ProgressLine("trying again", len(again), "videos") as line:
                    probed = prober.map(again, lambda row: self._row(row, False, prober)[0])
                    for rows in in_batches(self._second_pass(probed, tally, line)):
                        write(pa.Table.from_pylist(rows, schema=schema))
            for table in earlier.gone(schema):
                write(table)
            lock.check()
        self._probed.forget()

    def _first_pass(
        self, rows: Iterator[tuple[Row, bool]], again: list[Row], tally: IndexTally, line: ProgressLine
    ) -> Iterator[Row]:
        """Rows that are final; what failed in passing waits in ``again``."""
        for found, probed in rows:
            row = found
            if not probed:
                yield from self._final(row, tally)
                continue
            tally.watch(row)
            final = row["error_code"] not in TRANSIENT
            done = list(self._final(row, tally)) if final else []
            if not final:
                again.append(row)
            line.advance(1, errors=tally.errors)
            yield from done

    def _second_pass(self, rows: Iterator[Row], tally: IndexTally, line: ProgressLine) -> Iterator[Row]:
        failed: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for row in rows:
            code = row["error_code"]
            if code in TRANSIENT:
                row["attempts"] += 1
                failed[code] += 1
                examples.setdefault(code, row["error"])
            yield from self._final(row, tally)
            line.advance(1, errors=tally.errors)
        tally.judge(failed, examples)

    def _final(self, row: Row, tally: IndexTally) -> Iterator[Row]:
        """The rows of an object, which is done."""
        if row["error_code"] not in TRANSIENT:
            row["attempts"] = 0
        if row["status"] == Status.NOT_VIDEO:  # it is none of any class or split
            row |= dict.fromkeys([*self._heads, "split", "group"])
        parts = list(rows_of(row, self._heads))
        tally.count(row, parts, list(self._heads))
        yield from parts

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
        named = [name if name == FOLDERS else storage.normalise_uri(name) for name in config.labels]
        return {
            "src": self.src,
            "labels": named,
            "split": config.split,
            "split_rule": self._split_rule,
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
            segments=found.segments,
            left_out=found.left_out,
            splits=dict(sorted((listing if tally is None else tally).by_split.items())),
            to_retry=found.to_retry,
            reasons=dict(found.reasons.most_common()),
            skipped_by=dict(listing.skipped.most_common()),
            to_probe=earlier.to_probe,
            dry_run=self.config.dry_run,
            warnings=listing.warnings,
        )

"""Make the manifest of a bucket, or bring it up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BeforeValidator, Field

from tubelet import storage
from tubelet._version import __version__
from tubelet.config import Option, Settings, UserError
from tubelet.corpus.assembly import Assembly
from tubelet.corpus.beside import notes_folder, report_of
from tubelet.corpus.duplicate_hashes import How
from tubelet.corpus.earlier import RULES, Earlier, check_output
from tubelet.corpus.fingerprinting import fingerprints
from tubelet.corpus.labels import FOLDERS, load_labels
from tubelet.corpus.listing import Listing, list_corpus
from tubelet.corpus.looking import Looking
from tubelet.corpus.marking import Marked, marked_schema, marked_tables
from tubelet.corpus.probed import Probed
from tubelet.corpus.probing import Prober, default_workers
from tubelet.corpus.probing_on_ray import RayProber, cluster_prober
from tubelet.corpus.publication import manifest_writer
from tubelet.corpus.splits import TOGETHER, parse_split, split_column_of
from tubelet.corpus.tally import IndexTally
from tubelet.corpus.tombstones import forgotten
from tubelet.corpus.versions import record_folder, staging_folder
from tubelet.decode_limits import DecodeLimits
from tubelet.error_rate import MaxErrorRate
from tubelet.progress import ProgressLine
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, StorageOptions
from tubelet.storage.lock import OutputLock, lock_folder


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
    """train=0.8,val=0.1,test=0.1; column:NAME; group:REGEX. together:SPEC: duplicates share one."""
    duplicates: Annotated[How | None, Option()] = None
    """Mark videos that are there twice: the same content, or near, what looks the same (reads all videos)."""
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
    tracking_uri: Annotated[str | None, Option()] = None
    """MLflow server that is shown the report (default: none)."""
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
        duplicates: videos that show what another one shows, where they were looked for.
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
    duplicates: int | None = None
    to_probe: int = 0
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON summary."""
        return asdict(self)


def index_corpus(config: IndexConfig) -> IndexSummary:
    """List ``config.src``, probe what is new or changed, and publish the manifest at ``config.out``.

    Where this process is connected to a Ray cluster that has nodes besides its head, these look into the
    objects; else decode processes of this machine do.

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
                probed = Probed(self.out, Path(folder))
                reused = self._look(Looking(listing, earlier, probed, tally), probed)
                # Another tool made the manifest before, and assigned the splits.
                foreign = "src" not in earlier.made_from and config.split is None
                assembly = Assembly(listing, earlier, probed, tally, foreign)
                found = self._write(assembly, Path(folder) / "unmarked", lock)
                probed.forget()
                return self._with_duplicates(self._summary(listing, earlier, tally, reused), found)

    def _with_duplicates(self, summary: IndexSummary, found: Marked | None) -> IndexSummary:
        if found is None:
            return summary
        splits = dict(sorted(found.by_split.items())) if self._together else summary.splits
        warnings = [*summary.warnings, *found.warnings]
        return replace(summary, duplicates=found.duplicates, splits=splits, warnings=warnings)

    @property
    def _together(self) -> bool:
        return (self.config.split or "").startswith(TOGETHER)

    def _remember(self, known: dict[str, Any]) -> None:
        """An update that names no labels, split or include goes by those the manifest was made with."""
        kept = {
            n: known[n]
            for n in ("split", "include", "duplicates")
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
        labels = load_labels(
            config.labels,
            self.src,
            config.options,
            split_column_of((config.split or "").removeprefix(TOGETHER)),
        )
        rule = (config.split or "").removeprefix(TOGETHER) or None
        if self._together and config.duplicates is None:
            raise UserError(f"--split {config.split} needs --duplicates exact, or near")
        if self._together and (rule or "").startswith("column:"):
            raise UserError("--split together: goes with fractions or group:REGEX; a column's splits stay")
        split = parse_split(rule, labels, self._split_before)
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
                        forgotten=forgotten(self.out, config.options.for_writing()),
                        is_label_file=lambda info: info.uri in labels.files,
                        on_objects=line.advance,
                    )
                )
            yield listing

    def _is_ours(self, info: ObjectInfo) -> bool:
        """So may the manifest, its lock, and what is kept of it while it is made."""
        folders = (
            *(self.out, lock_folder(self.out), staging_folder(self.out), record_folder(self.out)),
            notes_folder(self.out),
        )
        return info.uri in (self.out, report_of(self.out)) or info.uri.startswith(
            tuple(f"{folder}/" for folder in folders)
        )

    def _look(self, looking: Looking, probed: Probed) -> int:
        """Probe what is new or changed; returns how many verdicts of a run before were used."""
        with probed:
            if looking.left:
                with self._prober(looking.left) as prober:
                    looking.run(prober.rows, self.now)
            probed.close()
        return looking.reused

    def _write(self, assembly: Assembly, unmarked: Path, lock: OutputLock) -> Marked | None:
        """Publish all rows; returns what was found of duplicates, where they are looked for."""
        found, schema = None, assembly.schema
        if self.config.duplicates is not None:
            schema = marked_schema(schema)
        made, options = self._made_from(), self.config.options.for_writing()
        with manifest_writer(self.out, schema, made_from=made, options=options) as write:
            tables = assembly.tables()
            if self.config.duplicates is not None:
                found, tables = self._marked(tables, assembly.schema, unmarked, self.config.duplicates)
            for table in tables:
                write(table)
            lock.check()
        return found

    def _marked(
        self, tables: Iterator[pa.Table], schema: pa.Schema, unmarked: Path, how: How
    ) -> tuple[Marked, Iterator[pa.Table]]:
        """``tables`` with their duplicates marked, the last may be the first one's twin."""
        with manifest_writer(str(unmarked), schema) as write:
            for table in tables:
                write(table)
        with self._prober() as prober:
            look = (
                prober.fingerprints if isinstance(prober, RayProber) else partial(fingerprints, prober=prober)
            )
            return marked_tables(
                str(unmarked), self.out, how, look, together=self._together, options=self.config.options
            )

    def _prober(self, objects: int | None = None) -> AbstractContextManager[Prober | RayProber]:
        """What opens videos: the nodes of a cluster where this process is connected to one, or this machine.

        Args:
            objects: how many there are, where that is known.
        """
        config, limits = self.config, self.config.limits.limits()
        cluster = cluster_prober(config.options, limits, config.workers)
        if cluster is not None:
            return nullcontext(cluster)
        workers = config.workers or default_workers()
        return Prober(workers if objects is None else min(workers, objects), config.options, limits)

    def _made_from(self) -> dict[str, Any]:
        config = self.config
        named = [name if name == FOLDERS else storage.normalise_uri(name) for name in config.labels]
        return {
            "src": self.src,
            "labels": named,
            "split": config.split,
            "split_rule": self._split_rule,
            "include": config.include,
            "duplicates": config.duplicates,
            "version": __version__,
            "rules": RULES,
        }

    def _summary(
        self, listing: Listing, earlier: Earlier, tally: IndexTally | None, reused: int = 0
    ) -> IndexSummary:
        found = tally or IndexTally(self.src, self.config.max_error_rate)
        return IndexSummary(
            out=self.out,
            objects=listing.objects,
            ok=found.ok,
            errors=found.errors,
            not_video=found.not_video,
            skipped=listing.skipped.total(),
            probed=found.probed,
            unchanged=earlier.unchanged + reused,
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

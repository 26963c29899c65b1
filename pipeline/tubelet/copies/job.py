"""The job behind ``tubelet prepare``: every video of a manifest once more, small and cheap to seek in."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.copies.config import PrepareConfig
from tubelet.copies.manifest import Copies, Whole, live, rows_of_copies, schema_of
from tubelet.copies.table import FOLDER, SCHEMA, VIDEOS, described
from tubelet.copies.worker import CopyJob, CopyWorker
from tubelet.corpus.manifest import ManifestSlices, is_manifest, read_manifest
from tubelet.corpus.publication import manifest_writer
from tubelet.corpus.versions import is_one_file, pinned_uri, split_version
from tubelet.error_rate import ErrorRate
from tubelet.inference.driver import Driver
from tubelet.inference.graph import Layout
from tubelet.inference.output import OutputFiles, check_or_init_output
from tubelet.inference.plan import Plan, make_plan
from tubelet.inference.sink import PredictionSink
from tubelet.inference.source import fingerprint_of, manifest_of, manifest_options
from tubelet.inference.table_run import VideoTally, make_rows
from tubelet.inference.workers import DecodeJob
from tubelet.storage.lock import OutputLock
from tubelet.storage.pinned import retry_if_changed
from tubelet.video import Status

_PACKED = re.compile(r"(\.tar(\.(gz|bz2|xz|zst))?|\.tgz|\.lance)/?$|\{\d+\.\.\d+\}", re.IGNORECASE)


@dataclass
class PrepareSummary:
    """How it ended; ``ok`` and ``errors`` count what the manifest of copies holds, all runs together.

    Attributes:
        objects: files to make: one per video, or per segment.
        copied: of this run; ``copied_bytes`` are those of all its copies.
        to_retry: errors among them of the store or the machine, which the same command tries again.
    """

    objects: int
    ok: int
    errors: int
    already_done: int
    copied: int = 0
    copied_bytes: int = 0
    to_retry: int = 0
    seconds: float = 0.0
    copy_s: float = 0.0
    out: str = ""
    reasons: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        return dataclasses.asdict(self)


class PrepareJob:
    """One run of ``tubelet prepare``.

    Raises:
        UserError: the source is of a kind that is not read.
    """

    def __init__(self, config: PrepareConfig) -> None:
        if _PACKED.search(config.source):
            raise UserError(
                f"{config.source}: WebDataset tars and Lance tables are not read as sources\n"
                "unpack them into a folder or prefix, one file per video, and index that"
            )
        self.config, self.out = config, storage.normalise_uri(config.out)
        if is_one_file(self.out) or split_version(self.out)[1] is not None:
            raise UserError(f"--out {config.out}: copies go into a folder, choose a name for one")

    def run(self, start_ray: Callable[[], None]) -> PrepareSummary:
        """Make the copies that are missing, then their manifest.

        Args:
            start_ray: called once there is something to do.

        Raises:
            UserError: a bad input, an output of something else or in use, too many failures.
        """
        config = self.config
        started_s, tally = time.monotonic(), VideoTally(("copy_size", "decode_s"))
        manifest = manifest_of(config, self.out)
        if split_version(storage.normalise_uri(manifest))[0] == self.out:
            raise UserError("--out is the manifest that is copied from: choose a place of its own")
        options = manifest_options(manifest, config.storage)
        manifest = pinned_uri(manifest, options)
        fingerprint_of(ManifestSlices.open(manifest, without=["keyframes_s"], options=options), config.source)
        with self._place() as files:
            sink = PredictionSink(files, SCHEMA)
            plan = retry_if_changed(lambda: self._plan(manifest, sink, files))
            if plan.work:
                self._copy(plan, sink, start_ray, tally)
            retry_if_changed(lambda: self._write_manifest(manifest, files))
        done, failed = plan.already_done[0], plan.already_failed[0]
        return PrepareSummary(
            objects=plan.rows,
            ok=done - failed + tally.ok,
            errors=failed + tally.errors,
            already_done=done,
            copied=tally.ok,
            copied_bytes=tally.sums["copy_size"],
            to_retry=tally.to_retry,
            seconds=round(time.monotonic() - started_s, 3),
            copy_s=round(tally.sums["decode_s"], 3),
            out=self.out,
            reasons=dict(tally.reasons),
        )

    def describe(self) -> str:
        """What :meth:`run` would do; writes nothing.

        Raises:
            UserError: the source is not there.
        """
        source, options = self.config.source, self.config.storage
        how = f"as {described(self.config.spec)} into {self.out}"
        if not is_manifest(source, options):
            count = sum(1 for _ in storage.list_objects(source, options, self.config.include))
            return f"would index {count} objects of {source}, and copy them {how}"
        columns = ["key", "segment", "status"]
        rows = read_manifest(source, columns, options=options)
        usable = rows.filter(pc.equal(rows["status"], str(Status.OK)))
        count = usable.num_rows if self.config.segments else len(pc.unique(usable["key"]))
        return f"would copy {count} {'segments' if self.config.segments else 'videos'} of {source} {how}"

    @contextmanager
    def _place(self) -> Iterator[OutputFiles]:
        """The table of copies, this job's own while inside."""
        options = self.config.storage.for_writing()
        with OutputLock(self.out, job="tubelet prepare", options=options) as lock:
            table = storage.join(self.out, FOLDER)
            files = OutputFiles(table, options, lock.check, "tubelet prepare")
            others = [
                name for name in storage.list_names(self.out, options) if not name.startswith((".", "_"))
            ]
            if others and not storage.exists(table, options):
                raise UserError(f"{self.out} holds other things ({others[0]!r}): choose another --out")
            made = {"copies": described(self.config.spec), "segments": str(self.config.segments)}
            check_or_init_output(files, made, new_version=None)
            yield files

    def _plan(self, manifest: str, sink: PredictionSink, files: OutputFiles) -> Plan:
        options = manifest_options(manifest, self.config.storage)
        slices = live(ManifestSlices.open(manifest, without=["keyframes_s"], options=options))
        wanted = slices if self.config.segments else Whole(slices)
        return make_plan(wanted, [sink.published], files, "_plan", retry_errors=self.config.retry_errors)

    def _copy(
        self, plan: Plan, sink: PredictionSink, start_ray: Callable[[], None], tally: VideoTally
    ) -> None:
        config = self.config

        def run(driver: Driver, layout: Layout) -> None:
            job = CopyJob(config.spec, storage.join(self.out, VIDEOS))
            driver.run(decode, job, layout, name="prepare", stage=CopyWorker)

        decode = DecodeJob((), storage=config.storage, limits=config.limits.limits())
        make_rows(
            plan,
            sink,
            ErrorRate(config.max_error_rate, "What is done is kept: mend the cause and set --retry-errors"),
            tally,
            known={},
            decode=decode,
            start_ray=start_ray,
            run=run,
            workers=config.workers,
            predictors=0,
            gpus=0,
        )

    def _write_manifest(self, manifest: str, files: OutputFiles) -> None:
        config = self.config
        slices = ManifestSlices.open(manifest, options=manifest_options(manifest, config.storage))
        made = {"prepared_from": manifest, "copies": described(config.spec)}
        with TemporaryDirectory(prefix="tubelet-") as folder:
            copies = Copies(files, Path(folder) / "copies.arrow")
            tables = iter(slices)
            first = next(tables)
            schema = schema_of(first.schema)
            with manifest_writer(self.out, schema, made_from=made, options=files.options) as write:
                for table in (first, *tables):
                    rows = rows_of_copies(table, copies, segments=config.segments)
                    write(pa.Table.from_pylist(list(rows), schema=schema))
                files.check_owner()

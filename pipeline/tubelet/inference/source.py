"""What a job goes over: a manifest, made first where the source is a bucket or a folder."""

from __future__ import annotations

from typing import Protocol

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.fingerprint import Fingerprint
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import ManifestSlices, is_manifest
from tubelet.corpus.versions import split_version
from tubelet.decode_limits import DecodeLimits
from tubelet.storage import StorageOptions

# Where a job that is given a bucket keeps the manifest of it, below its output.
INSIDE = "_manifest"
# Columns of a manifest that inference has no use for; the keyframes alone are as large as all it has.
NOT_NEEDED = frozenset({"codec", "rotation", "fps", "vfr", "frames", "start_s", "keyframes_s", "indexed_at"})


class SourceSettings(Protocol):
    """What the jobs that go over a manifest, or a bucket, have in common."""

    source: str
    include: str | None
    retry_errors: bool
    max_error_rate: float
    storage: StorageOptions

    @property
    def limits(self) -> DecodeLimits:
        """What one video may cost; a job's own kind of them, too."""


def manifest_of(settings: SourceSettings, out: str) -> str:
    """Where the manifest of the settings' source lies: itself, or one that is made or updated below ``out``.

    Raises:
        UserError: the source is not there, too many of its objects cannot be read, or ``include`` is given
            with a manifest.
    """
    source, options = settings.source, settings.storage
    if is_manifest(source, options):
        if settings.include is not None:
            raise UserError(
                "--include selects from a bucket or folder; a manifest already says what there is"
            )
        return source
    made = storage.join(out, INSIDE)
    index_corpus(
        IndexConfig(
            src=source,
            out=made,
            include=settings.include,
            update=storage.exists(made, options.for_writing()),
            retry_errors=settings.retry_errors,
            max_error_rate=settings.max_error_rate,
            limits=settings.limits,
            options=options,
        )
    )
    return made


def manifest_options(manifest: str, options: StorageOptions) -> StorageOptions:
    """How to reach what :func:`manifest_of` returned: one that was made is an output, with credentials."""
    made = storage.name_of(split_version(manifest)[0]) == INSIDE
    return options.for_writing() if made else options


def fingerprint_of(manifest: ManifestSlices, source: str) -> str:
    """Go over all rows before the output is touched; returns their fingerprint.

    Raises:
        UserError: there are no rows.
    """
    found, rows = Fingerprint(), 0
    for table in manifest:
        rows += table.num_rows
        found.add(table)
    if not rows:
        raise UserError(f"{source} holds no videos: check the path and --include")
    return found.hexdigest()

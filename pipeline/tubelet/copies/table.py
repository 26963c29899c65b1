"""The table of what was copied: primary key ``(key, window)``, window 0 for a whole video."""

from __future__ import annotations

import hashlib
from itertools import starmap

import pyarrow as pa

from tubelet.corpus.manifest import FILE_FACTS
from tubelet.inference.schema import WHO
from tubelet.video import CopySpec

FOLDER = "_copies"
"""The table's folder below the output."""
VIDEOS = "_videos"
"""The folder of the copies themselves: readers of a manifest's folder look for Parquet, and skip it."""

SCHEMA = pa.schema(
    [
        *WHO,
        pa.field("copy_uri", pa.string()),
        pa.field("copy_etag", pa.string()),
        pa.field("copy_size", pa.int64()),
        *starmap(pa.field, FILE_FACTS),
        # Runs that ended with a transient error of this content; 0 for what is well, or final.
        pa.field("attempts", pa.int32()),
    ]
)

# Of a manifest of copies, what it says of the originals.
ORIGIN_COLUMNS = (
    pa.field("origin_uri", pa.string()),
    pa.field("origin_etag", pa.string()),
    pa.field("origin_size", pa.int64()),
    pa.field("origin_clip_start_s", pa.float64()),
    pa.field("origin_clip_end_s", pa.float64()),
)


def described(spec: CopySpec) -> str:
    """How copies are made, as one word."""
    return f"h264-{spec.short_side}px-gop{spec.gop}-crf{spec.crf}"


def copy_name(key: str, window: int, part: str, etag: str, made: str) -> str:
    """The name of a copy below :data:`VIDEOS`: the same for the same content, made in the same way.

    Args:
        key: of the video.
        window: the segment; 0 for the whole.
        part: where the segment lies.
        etag: of the original.
        made: see :func:`described`.
    """
    digest = hashlib.blake2b(f"{etag}\n{part}\n{made}".encode(), digest_size=6).hexdigest()
    segment = f"-{window}" if window else ""
    return f"{key[:2]}/{key}{segment}-{digest}.mp4"

"""Reads videos for what tells duplicates: here, or in a task on a node of a cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from tubelet.corpus.likeness import VIEW, digest_of, hashes_of
from tubelet.corpus.probing import Prober
from tubelet.storage import ObjectInfo
from tubelet.video import DecodeError

_log = logging.getLogger(__name__)

Row = dict[str, Any]

ASKED = pa.schema(
    [
        *[(name, pa.string()) for name in ("key", "uri", "path", "etag")],
        ("size", pa.int64()),
        ("number", pa.int64()),
        ("wants_digest", pa.bool_()),
        ("wants_hashes", pa.bool_()),
    ]
)
"""Of each video, with a number by which it is known, and what is to be found."""

FOUND = pa.schema(
    [
        ("digest", pa.string()),
        ("bits", pa.list_(pa.uint64())),
        ("said", pa.list_(pa.bool_())),
        ("unread", pa.string()),
    ]
)
"""What was found: null where it was not asked for; ``unread`` says why it could not be."""


def fingerprints(rows: Iterable[Row], prober: Prober) -> Iterator[Row]:
    """Rows of :data:`ASKED`, each with the columns of :data:`FOUND`, in their order.

    Raises:
        DecoderStartError: this machine cannot start a decoder.
    """

    def work(row: Row) -> Row:
        return row | _fingerprint(row, prober)

    return prober.map(rows, work)


def _fingerprint(row: Row, prober: Prober) -> Row:
    info = ObjectInfo(row["uri"], row["path"], row["etag"] or "", row["size"])
    found: Row = dict.fromkeys(FOUND.names)
    try:
        if row["wants_digest"]:
            found["digest"] = digest_of(prober.opener(info))
        if row["wants_hashes"]:
            hashes = hashes_of(prober.decode(info, [VIEW]).clips[0])
            found |= {"bits": hashes.bits.tolist(), "said": hashes.said.tolist()}
    except (DecodeError, OSError) as error:
        found["unread"] = str(error)
        _log.info("no fingerprint of %s: %s", row["path"], error)
    return found

"""Rows of a predictions table as the page has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet.corpus.manifest import REQUIRED, SCHEMA, ManifestSlices, label_columns
from tubelet.storage import StorageOptions
from tubelet.storage.pinned import retry_if_changed

Truth = Mapping[tuple[str, int], dict[str, str]]
"""By key and window: the true label of each head; several labels of one clip are joined by ``|``."""

_TOP = 5
# Columns of a manifest that say nothing of the truth; the keyframes alone are larger than all that do.
_NOT_TRUTH = frozenset(SCHEMA.names) - {*REQUIRED, "segment", "label"}


def in_first_order(rows: pa.Table) -> pa.Table:
    """Least confident first, as the page is when it opens: its first pictures then lie together."""
    score = pc.if_else(pc.is_nan(rows["score"]), None, rows["score"])
    columns = {"score": score, "key": rows["key"], "window": rows["window"]}
    keys = [(name, "ascending") for name in columns]
    return rows.take(pc.sort_indices(pa.table(columns), sort_keys=keys))


def page_rows(rows: pa.Table, truth: Truth, *, whole_uris: bool = False) -> list[dict[str, Any]]:
    """What the page knows of each row, pictures and links apart.

    ``whole_uris``: name videos by their URIs, and not by their paths below the folder that all share.
    """
    heads = [
        name
        for name in label_columns(rows)
        if name != "label" and f"topk_labels{name.removeprefix('label')}" in rows.column_names
    ]
    prefix = "" if whole_uris else common_folder(rows["uri"].to_pylist())
    return [_row(row, heads, prefix, truth) for row in rows.to_pylist()]


def _row(row: dict[str, Any], heads: Sequence[str], prefix: str, truth: Truth) -> dict[str, Any]:
    times = [t for t in row["clip_times_s"] or () if math.isfinite(t)]
    known = truth.get((row["key"], row["window"]), {})
    answers = {head: _answer(row, head, known) for head in ("label", *heads)}
    return {
        "key": row["key"],
        "window": row["window"],
        "uri": row["uri"],
        "path": row["uri"].removeprefix(prefix),
        **answers.pop("label"),
        "start": row["start_s"],
        "end": row["end_s"],
        # The seconds that the model saw, the first and the last; the frame of the last is shown, too.
        "seen": [round(min(times), 3), round(max(times), 3)] if times else None,
        "partial": row["error"] if row["error_code"] else None,
        "heads": answers,
    }


def _answer(row: dict[str, Any], head: str, known: Mapping[str, str]) -> dict[str, Any]:
    suffix = head.removeprefix("label")
    labels, scores = row[f"topk_labels{suffix}"] or (), row[f"topk_scores{suffix}"] or ()
    truth = row.get(f"label_true{suffix}") or known.get(head)
    return {
        "label": row[head],
        "score": row[f"score{suffix}"],
        "top": [list(pair) for pair in itertools.islice(zip(labels, scores, strict=True), _TOP)],
        **({"truth": truth} if truth else {}),
    }


def error_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page knows of a row that has no label."""
    return {
        "key": row["key"],
        "window": row["window"],
        "uri": row["uri"],
        "path": row["uri"],
        "code": row["error_code"] or "error",
        "reason": row["error"] or "",
    }


def read_truth(manifest: str, options: StorageOptions) -> dict[tuple[str, int], dict[str, str]]:
    """The labels of a manifest, by key and segment.

    Raises:
        UserError: there is no manifest.
    """

    def read() -> dict[tuple[str, int], dict[str, str]]:
        found: dict[tuple[str, int], dict[str, str]] = {}
        for table in ManifestSlices.open(manifest, without=_NOT_TRUTH, options=options):
            heads = label_columns(table)
            for row in table.select(["key", "segment", *heads]).to_pylist():
                labels = {h: "|".join(v) if isinstance(v, list) else v for h in heads if (v := row[h])}
                if labels:
                    found[row["key"], row["segment"]] = labels
        return found

    return retry_if_changed(read)


def common_folder(uris: Sequence[str]) -> str:
    """The folder that all URIs share, which the page need not repeat."""
    folders = [uri.rpartition("/")[0] for uri in uris]
    first, last = min(folders, default="").split("/"), max(folders, default="").split("/")
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(part + "/" for part, _ in shared)

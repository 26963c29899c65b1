"""The predictions table: primary key ``(key, window)``, one row per object unless windows are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

EmbeddingType = Literal["float16", "float32"]

MAX_MODELS = 62
"""Of one job: they are bits of an int64 in its requests."""

REQUEST_SCHEMA = pa.schema(
    [
        ("request", pa.int64()),  # its number; tells a row that came twice
        ("key", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),  # -1: not known
        ("window", pa.int32()),
        ("clip_start_s", pa.float64()),  # NaN: the whole video
        ("clip_end_s", pa.float64()),
        ("models", pa.int64()),  # bit m: model number m has to answer it
    ]
)
"""What is asked of the graph: one row per video, or per window of one."""


@dataclass(frozen=True)
class RowShape:
    """What one model's rows hold beside the columns that all rows have.

    Attributes:
        heads: number of classes by head; the first one fills ``label``, further ones ``label_<head>`` and
            so on.
        scores: all probabilities of each head, a fixed-size list of float32.
        embedding: element type of the pooled features, or None for no such column. Failed rows hold NaN there
            and in ``scores`` and ``logits``, null elsewhere.
        embedding_dim: their length (the model's width).
        logits: all raw logits of each head (the means over the views), a fixed-size list of float32.
    """

    heads: Mapping[str, int] = field(default_factory=lambda: {"label": 1})
    scores: bool = False
    embedding: EmbeddingType | None = None
    embedding_dim: int = 0
    logits: bool = False

    @property
    def suffixes(self) -> dict[str, str]:
        """Column suffix by head: none for the first."""
        return {head: "" if i == 0 else f"_{head}" for i, head in enumerate(self.heads)}

    def schema(self) -> pa.Schema:
        """The Parquet schema of this model's rows."""
        fields = [*WHO]
        for head, suffix in self.suffixes.items():
            fields += [
                pa.field(f"label{suffix}", pa.string()),
                pa.field(f"score{suffix}", pa.float32()),
                pa.field(f"topk_labels{suffix}", pa.list_(pa.string())),
                pa.field(f"topk_scores{suffix}", pa.list_(pa.float32())),
            ]
            for name, wanted in (("scores", self.scores), ("logits", self.logits)):
                if wanted:
                    fields.append(pa.field(f"{name}{suffix}", pa.list_(pa.float32(), self.heads[head])))
        fields += HOW
        if self.embedding is not None:
            kind = pa.float16() if self.embedding == "float16" else pa.float32()
            fields.append(pa.field("embedding", pa.list_(kind, self.embedding_dim)))
        return pa.schema(fields)


# Of every table that the sink writes: which content a row is about, and how it was made.
WHO = (
    pa.field("key", pa.string(), nullable=False),
    pa.field("window", pa.int32(), nullable=False),
    pa.field("uri", pa.string()),
    pa.field("etag", pa.string()),
    pa.field("status", pa.string()),
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
)
HOW = (
    pa.field("views", pa.int32()),
    pa.field("clip_times_s", pa.list_(pa.float64())),
    # The window's place in the video; null where the row is about the whole of it.
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
    pa.field("model", pa.string()),
    pa.field("sampling", pa.string()),
    # Runs that ended with a transient error of this content; 0 for what is well, or final.
    pa.field("attempts", pa.int32()),
)


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly ``schema``; absent columns are null."""
    columns = [column_of([row.get(name) for row in rows], schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as an array. In fixed-size lists NaN stands for null, which PyArrow writes and cannot read."""
    if pa.types.is_fixed_size_list(kind):
        width = np.float16 if kind.value_type == pa.float16() else np.float32
        nothing = np.full(kind.list_size, np.nan, width)
        values = [nothing if value is None else np.asarray(value, width) for value in values]
    return pa.array(values, kind)

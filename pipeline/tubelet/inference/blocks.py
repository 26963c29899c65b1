"""Batches of clips as single rows, in which Ray Data hands them on whole."""

from __future__ import annotations

import pyarrow as pa

from tubelet.clips import Batch


def block_of(batch: Batch) -> pa.Table:
    """``batch`` as one row: Ray Data gives a GPU so many rows at a time, cut and joined, and never a block.

    Arrow's lists share the memory of what they hold: no clip is copied.
    """
    from ray.data.block import BlockAccessor  # takes seconds, and one file is labelled without Ray

    table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
    columns = [column.combine_chunks() for column in table.columns]
    rows = pa.StructArray.from_arrays(columns, names=table.column_names)
    return pa.table({"block": pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)})


def batch_of(block: pa.Table) -> Batch:
    """What :func:`block_of` made one row of."""
    from ray.data.block import BlockAccessor

    rows = block["block"].combine_chunks().flatten()
    table = pa.Table.from_arrays(rows.flatten(), names=[field.name for field in rows.type])
    batch: Batch = BlockAccessor.for_block(table).to_batch_format("numpy")
    return batch

"""Whole tables in cells of a batch: so they keep their exact types, whichever columns happen to be null."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tubelet.clips import Batch


def cells_of(tables: Sequence[pa.Table]) -> Batch:
    """A cell for each model that has rows in ``tables``, which are in the order of the models."""
    found = [(number, table) for number, table in enumerate(tables) if table.num_rows]
    cells = np.empty(len(found), object)
    cells[:] = [_ipc(table) for _, table in found]
    return {"model": np.array([number for number, _ in found], np.int32), "table": cells}


def read_cell(cell: bytes) -> pa.Table:
    """The table of one ``table`` cell."""
    return pa.ipc.open_stream(cell).read_all()


def _ipc(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()

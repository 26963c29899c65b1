"""A plan's requests answered in this process: for few videos, starting Ray takes longer than the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from tubelet.inference.cells import read_cell
from tubelet.inference.plan import ShardRequests
from tubelet.inference.predictor import Job
from tubelet.inference.workers import DecodeJob, DecodePredict

# What an actor of a small job on Ray is given: batches or threads of other sizes would move last bits.
_TASK_ROWS = 1
_THREADS = 1


def result_tables(
    requests: ShardRequests, decode: DecodeJob, models: Callable[[], Sequence[Job]]
) -> Iterator[tuple[int, pa.Table]]:
    """``(model number, rows)``, as the graph on Ray gives them."""
    stage = DecodePredict(decode, requests.reader(), models, _THREADS)
    try:
        for task in requests.tasks(_TASK_ROWS):
            for cells in stage(task):
                for number, cell in zip(cells["model"], cells["table"], strict=True):
                    yield int(number), read_cell(cell)
    finally:
        stage.close()

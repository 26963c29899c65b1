"""The event queue between ranks and driver: records go to the driver, requests to stop or save come back.

MLflow and the terminal belong to the driver, so that ranks start fast, and that neither an outage of the
tracking server nor the death of a rank costs a figure.
"""

from __future__ import annotations

from typing import Any

import ray

Record = dict[str, Any]


class _EventQueue:
    def __init__(self) -> None:
        self._records: list[Record] = []
        self._stop, self._save = "", False

    def put(self, record: Record) -> tuple[str, bool]:
        """Append a record; returns why the ranks should stop, or '', and whether they should save."""
        if record["kind"] in ("start", "saved"):
            self._save = False
        if record["kind"] != "saved":
            self._records.append(record)
        return self._stop, self._save

    def drain(self) -> list[Record]:
        """All records since the last call, in the order they came."""
        records, self._records = self._records, []
        return records

    def request_stop(self, reason: str) -> None:
        """Ask the ranks to save a checkpoint and end."""
        self._stop = reason

    def request_save(self) -> None:
        """Ask the ranks to save a checkpoint and go on; see :meth:`is_saving`."""
        self._save = True

    def is_saving(self) -> bool:
        """Whether the ranks have yet to do what :meth:`request_save` asked for."""
        return self._save


def start_event_queue() -> Any:
    """A handle of a new queue; its actor lives on the driver's node and as long as the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_EventQueue).remote()


class EventSender:
    """A rank's side of the queue: sending never waits; answers are read once they are there."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._answers: list[Any] = []
        self.stop_reason = ""
        self.save = False

    def send(self, record: Record) -> None:
        """Send a record."""
        self._answers.append(self._queue.put.remote(record))
        ready, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
        for answer in ready:
            reason, self.save = ray.get(answer)
            self.stop_reason = reason or self.stop_reason

    def flush(self) -> None:
        """Return once all records have arrived."""
        ray.get(self._answers)
        self._answers = []

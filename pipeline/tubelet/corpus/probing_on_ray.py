"""Look into videos on the nodes of a Ray cluster, by Ray Data; the head, with the credentials, opens none."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from tubelet.cluster import quiet_ray_data, wait_for
from tubelet.config import UserError
from tubelet.corpus import fingerprinting
from tubelet.corpus.earlier import PROBED_COLUMNS
from tubelet.corpus.manifest import SCHEMA
from tubelet.corpus.probing import Prober
from tubelet.storage import StorageOptions
from tubelet.video import DecoderStartError, Limits

_log = logging.getLogger(__name__)

# Objects of one task: enough that Ray's few milliseconds per task do not count, and little to do again. The
# last tasks get few, so that none of the workers goes on for long when the others have nothing left.
_BLOCK_ROWS, _LEAST_ROWS = 64, 4
# Objects whose names are in Ray's memory at once (some 30 MB); between waves the cluster idles for a moment.
_WAVE_ROWS = 100_000
# Probing waits for the store half of its time, so two of them share a core.
_CPUS = 0.5
# What a decode process that probes an ordinary video takes, with what Ray's own worker does.
_TASK_BYTES = 512 << 20
Row = dict[str, Any]

_HEAD = "node:__internal_head__"
_FAULT = "fault"

_ASKED = pa.schema(
    [*[SCHEMA.field(n) for n in ("key", "uri", "path", "etag", "size")], pa.field("named", pa.bool_())]
)

_prober: tuple[Any, Prober] | None = None


class RayProber:
    """As :class:`tubelet.corpus.probing.Prober`, with one object at a time per task on the worker nodes.

    Args:
        options: how to reach the store.
        limits: what one object may cost.
        workers: objects probed at once; None: as many as the cluster has room for.

    Attributes:
        by_node: objects probed on each node, by its id.
    """

    def __init__(self, options: StorageOptions, limits: Limits, workers: int | None = None) -> None:
        self._settings = (options, limits)
        self._workers = workers
        self.by_node: Counter[str] = Counter()

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """As :meth:`tubelet.corpus.probing.Prober.rows`, in the order in which they are done.

        Raises:
            DecoderStartError: a node cannot start a decoder.
            UserError: the store takes the credentials for no object.
        """
        return self._waves(rows, _ASKED, probe_block, _CPUS)

    def fingerprints(self, rows: Iterable[Row]) -> Iterator[Row]:
        """As :func:`tubelet.corpus.fingerprinting.fingerprints`, in the order in which they are done.

        Raises:
            DecoderStartError: a node cannot start a decoder.
        """
        return self._waves(rows, fingerprinting.ASKED, fingerprint_block, 1.0)

    def _waves(
        self, rows: Iterable[Row], asked: pa.Schema, work: Callable[..., pa.Table], cpus: float
    ) -> Iterator[Row]:
        source = iter(rows)
        while wave := list(itertools.islice(source, _WAVE_ROWS)):
            blocks = shares(wave, self._at_once(cpus))
            yield from self._wave([pa.Table.from_pylist(block, asked) for block in blocks], work, cpus)

    def _at_once(self, cpus: float) -> int:
        """How many tasks of so many CPUs run at once, as the cluster is now."""
        there = sum(node["Resources"].get("CPU", 0.0) for node in _worker_nodes())
        room = max(1, int(there / cpus))
        return room if self._workers is None else min(room, self._workers)

    def _wave(self, blocks: list[pa.Table], work: Callable[..., pa.Table], cpus: float) -> Iterator[Row]:
        import ray

        heads = [node["NodeID"] for node in ray.nodes() if _HEAD in node["Resources"]]
        dataset = ray.data.from_blocks(blocks).map_batches(
            work,
            batch_size=None,
            batch_format="pyarrow",
            fn_args=self._settings,
            num_cpus=cpus,
            memory=_TASK_BYTES,
            concurrency=self._workers,
            label_selector={"ray.io/node-id": f"!in({','.join(heads)})"},
        )
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for row in table.to_pylist():
                fault = row.pop(_FAULT)
                if fault is not None:
                    raise (UserError if fault.startswith("user:") else DecoderStartError)(fault[5:])
                self.by_node[row.pop("node")] += 1
                yield row


def cluster_prober(options: StorageOptions, limits: Limits, workers: int | None) -> RayProber | None:
    """What probes on the cluster that this process is connected to; None where there is none but a head.

    A cluster that has no worker yet, but may get some, is waited for.
    """
    import sys

    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    wait_for({"CPU": 1.0})
    others = [node for node in _worker_nodes() if node["Resources"].get("CPU")]
    if not others:
        return None
    quiet_ray_data()
    _log.info("probing on %d nodes", len(others))
    return RayProber(options, limits, workers)


def _worker_nodes() -> list[Row]:
    """The nodes that are alive, but for the head."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and _HEAD not in node["Resources"]]


def shares(rows: Sequence[Row], at_once: int) -> Iterator[Sequence[Row]]:
    """The rows of each task, in order: ever fewer towards the end, so that all end at about one time.

    Args:
        at_once: tasks that run at one time.
    """
    start = 0
    while start < len(rows):
        fair = -(-(len(rows) - start) // (2 * at_once))
        end = start + max(_LEAST_ROWS, min(_BLOCK_ROWS, fair))
        yield rows[start:end]
        start = end


def probe_block(block: pa.Table, options: StorageOptions, limits: Limits) -> pa.Table:
    """The rows with what was found; ``fault`` says what ends the whole job."""
    found = [SCHEMA.field(name) for name in PROBED_COLUMNS if name != "indexed_at"]
    return _block(block, found, options, limits, lambda rows, prober: prober.rows(rows))


def fingerprint_block(block: pa.Table, options: StorageOptions, limits: Limits) -> pa.Table:
    """As :func:`probe_block`, of what tells duplicates."""
    return _block(block, list(fingerprinting.FOUND), options, limits, fingerprinting.fingerprints)


def _block(
    block: pa.Table,
    found: list[pa.Field],
    options: StorageOptions,
    limits: Limits,
    look: Callable[[list[Row], Prober], Iterator[Row]],
) -> pa.Table:
    """A worker of Ray keeps its decode process from one task to the next."""
    import ray

    global _prober  # noqa: PLW0603 - as long as the worker lives
    if _prober is None or _prober[0] != (options, limits):
        _prober = ((options, limits), Prober(1, options, limits))
    node = ray.get_runtime_context().get_node_id()
    schema = pa.schema([*block.schema, *found, (_FAULT, pa.string()), ("node", pa.string())])
    try:
        rows = [{**row, "node": node} for row in look(block.to_pylist(), _prober[1])]
    except (UserError, DecoderStartError) as error:
        kind = "user:" if isinstance(error, UserError) else "start"
        rows = [{_FAULT: f"{kind}{error}"}]
    return pa.Table.from_pylist(rows, schema)

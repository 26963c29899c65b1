"""Look into the objects that nothing is known of yet; what fails in passing gets a second chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from tubelet.corpus.earlier import Earlier
from tubelet.corpus.listing import Listing, RowFile
from tubelet.corpus.parts import Row
from tubelet.corpus.probed import Probed
from tubelet.corpus.probing import judge
from tubelet.corpus.tally import IndexTally
from tubelet.progress import ProgressLine
from tubelet.video import TRANSIENT

Probe = Callable[[Iterable[Row]], Iterator[Row]]
"""Rows with :data:`WANTED`, each returned with the columns that probing fills, in any order."""

WANTED = ("key", "uri", "path", "etag", "size", "named")


class Looking:
    """One pass over what is new, and a second over what failed.

    Args:
        listing: the objects.
        earlier: the manifest before.
        probed: where verdicts are kept.
        tally: watches for outages.

    Attributes:
        reused: objects that a run before this one looked into, which did not come to its end.
    """

    def __init__(self, listing: Listing, earlier: Earlier, probed: Probed, tally: IndexTally) -> None:
        self._listing, self._earlier, self._probed, self._tally = listing, earlier, probed, tally
        self._again: RowFile = listing.row_file("again", WANTED)
        self.reused = 0
        self.left = self._count()

    def _count(self) -> int:
        if not self._earlier.to_probe:
            return 0
        left = self._earlier.to_probe
        if len(self._probed):
            self.reused = sum(int(known.sum()) for _, known in self._new())
        return left - self.reused

    def run(self, probe: Probe, at: datetime) -> None:
        """Look into all that is left.

        Args:
            probe: looks into objects.
            at: when, for the rows.

        Raises:
            UserError: an outage.
        """
        with ProgressLine("indexing", self.left, "videos") as line:
            for row in probe(self._wanted()):
                self._tally.watch({**row, "status": judge(row, named=row["named"])})
                if row["error_code"] in TRANSIENT:
                    self._again.add(row)
                else:
                    self._probed.add({**row, "indexed_at": at})
                line.advance(1, errors=self._tally.failed)
        self._tally.check_readable()
        if self._again.rows:
            self._second_pass(probe, at)

    def _second_pass(self, probe: Probe, at: datetime) -> None:
        failed: Counter[str] = Counter()
        examples: dict[str, str] = {}
        with ProgressLine("trying again", self._again.rows, "videos") as line:
            rows = (row for batch in self._again.tables() for row in batch.to_pylist())
            for row in probe(rows):
                if row["error_code"] in TRANSIENT:
                    failed[row["error_code"]] += 1
                    examples.setdefault(row["error_code"], row["error"])
                self._probed.add({**row, "indexed_at": at})
                line.advance(1, errors=failed.total())
        self._tally.judge(failed, examples)

    def _wanted(self) -> Iterator[Row]:
        for batch, known in self._new():
            yield from batch.filter(pa.array(~known)).select(WANTED).to_pylist()

    def _new(self) -> Iterator[tuple[pa.RecordBatch, Any]]:
        """The objects that the manifest before says nothing of, and whether a run before looked into them."""
        for batch in self._listing.tables():
            new = batch.take(pa.array(np.flatnonzero(self._earlier.match(batch).usable < 0)))
            if new.num_rows:
                yield new, self._probed.known(new)

"""All rows of an output, for the page that is served: those most like one, and rows that it did not show."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.inference.output import OutputFiles
from tubelet.inference.sink import part_name, part_numbers
from tubelet.review.page import PageMaker, inline, strips_of
from tubelet.review.queues import Floats, places_of, unit_embeddings
from tubelet.review.rows import page_rows
from tubelet.review.survey import HEAVY, Place
from tubelet.video import Status

# More are no help: what is further away is not alike.
_ALIKE = 36


class WholeOutput:
    """The labelled rows of the output that ``maker`` made a page of; read when they are first asked for.

    Their embeddings stay in memory, as float32.
    """

    def __init__(self, maker: PageMaker) -> None:
        self._maker, self._config = maker, maker.config
        self._files = OutputFiles(self._config.predictions, self._config.predictions_options)
        self._lock = threading.Lock()
        self._places: list[Place] | None = None
        self._at: dict[Place, int] = {}
        self._parts: list[tuple[str, int]] = []
        self._vectors: Floats | None = None

    def alike(self, place: Place) -> list[Place]:
        """The rows most like one among all, the nearest first; none where there are no embeddings."""
        self._read()
        at = self._at.get(place)
        if self._vectors is None or at is None or self._places is None:
            return []
        closeness = self._vectors @ self._vectors[at]
        closeness[at] = -np.inf
        count = min(_ALIKE, len(closeness) - 1)
        if count < 1:
            return []
        best = np.argpartition(-closeness, count - 1)[:count]
        return [self._places[i] for i in best[np.argsort(-closeness[best], kind="stable")].tolist()]

    def rows(self, places: Iterable[Place]) -> list[dict[str, Any]]:
        """Those of these rows that there are, as the page has them, with their pictures inside."""
        self._read()
        wanted = [self._at[place] for place in places if place in self._at]
        if not wanted:
            return []
        tables, first = [], 0
        for name, count in self._parts:
            here = [i - first for i in wanted if first <= i < first + count]
            first += count
            if here:
                schema = self._files.read_schema(name)
                columns = [column for column in schema.names if not column.startswith(HEAVY)]
                tables.append(_labelled(self._files.read_table(name, columns)).take(pa.array(here)))
        table = pa.concat_tables(tables)
        rank = {self._at[place]: number for number, place in enumerate(places_of(table))}
        table = table.take(pa.array([rank[i] for i in wanted]))
        rows = page_rows(table, self._maker.truth, whole_uris=True)
        with strips_of(table, self._config) as strips:
            return [
                row
                | inline(strip)
                | {
                    "path": row["uri"].removeprefix(self._maker.prefix),
                    "link": f"video/{row['key']}/{row['window']}",
                }
                for row, strip in zip(rows, strips, strict=True)
            ]

    def _read(self) -> None:
        with self._lock:
            if self._places is not None:
                return
            tables = []
            for number in part_numbers(self._files.names()):
                name = part_name(number)
                table = _labelled(self._files.read_table(name, ["key", "window", "status", "embedding"]))
                self._parts.append((name, table.num_rows))
                tables.append(table)
            table = pa.concat_tables(tables)
            self._vectors = unit_embeddings(table)
            self._places = places_of(table)
            self._at = {place: i for i, place in enumerate(self._places)}


def _labelled(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.not_equal(rows["status"], Status.ERROR.value))

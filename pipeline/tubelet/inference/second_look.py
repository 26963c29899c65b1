"""Another look at what the index could not read, for the durations that windows are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tubelet.corpus.probing import Prober, judge
from tubelet.storage import ObjectInfo
from tubelet.video import TRANSIENT, Status


class SecondLook:
    """Completes rows of a manifest whose objects the index could not read for the store's or machine's doing.

    Without windows the decoders try such an object again; how many windows it has, only a look into it tells.

    Args:
        prober: looks into the objects.
    """

    def __init__(self, prober: Prober) -> None:
        self._prober = prober

    @staticmethod
    def wanted(row: dict[str, Any]) -> bool:
        """Whether another look at the object of ``row`` may find more than the index did."""
        return row["status"] == Status.ERROR and row["error_code"] in TRANSIENT

    def __call__(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each of ``rows`` with what the look found, which may be the same error, or another."""
        return self._prober.map(rows, self._look)

    def _look(self, row: dict[str, Any]) -> dict[str, Any]:
        info = ObjectInfo(row["uri"], row["path"], row["etag"] or "", row["size"])
        found = {**row, **self._prober.probe(info)}
        return {**found, "status": judge(found, named=False)}

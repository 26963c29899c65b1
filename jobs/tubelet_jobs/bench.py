"""``tubelet bench``: measure against the best peers, in one run, as ratios."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from rich.console import Console
from rich.table import Table
from tubelet.config import Option, Settings, UserError

from tubelet_jobs.common import print_summary

KINDS = ("decode", "pipeline", "model", "train", "label")


class BenchOptions(Settings):
    """What the command line asks of a bench."""

    vs: Annotated[tuple[str, ...] | None, Option(metavar="PEER")] = None
    """Compare with these peers only (repeatable; default: all)."""
    full: Annotated[bool, Option()] = False
    """Everything, however long it takes."""
    videos: Annotated[str | None, Option(metavar="DIR")] = None
    """decode: a folder of videos to use."""
    driver: Annotated[bool, Option()] = False
    """label: only the driver, with workers that answer at once: rows per processor-second."""
    plan: Annotated[int | None, Option(metavar="N"), Field(ge=1)] = None
    """pipeline: what it takes to label N videos in --hours, from rates measured here."""
    hours: Annotated[float | None, Option(metavar="H"), Field(gt=0)] = None
    """pipeline: in so many hours."""
    prices: Annotated[str | None, Option(metavar="FILE")] = None
    """pipeline: YAML with core_hour and gpu_hour in dollars (default: 0.05 and 3)."""

    def peers(self, known: Sequence[str]) -> list[str]:
        """The peers to run, out of those a bench knows.

        Raises:
            UserError: ``--vs`` names one that the bench does not know.
        """
        if self.vs is None:
            return list(known)
        unknown = sorted(set(self.vs) - set(known))
        if unknown:
            raise UserError(f"--vs {unknown[0]}: no such peer here; choose from {', '.join(known)}")
        return [peer for peer in known if peer in self.vs]


class BenchCommand(BenchOptions):
    """The whole command line: which bench, and where its rows go."""

    kind: Annotated[str, Option(argument=True, metavar="KIND")]
    """What to measure: decode, pipeline, model, train or label."""
    more_peers: Annotated[tuple[str, ...], Option(argument=True, metavar="PEER")] = ()
    """More peers for --vs."""
    json_file: Annotated[str | None, Option(flag="--json", metavar="FILE")] = None
    """Write one JSON row per line to this file."""

    @model_validator(mode="before")
    @classmethod
    def _gather_peers(cls, data: dict[str, Any]) -> dict[str, Any]:
        """``--vs A B``, ``--vs A --vs B`` and ``--vs A,B`` are the same."""
        vs, more = data.get("vs"), tuple(data.get("more_peers") or ())
        if more and not vs:
            raise ValueError(f"unexpected argument {more[0]!r}: name peers with --vs")
        peers = tuple(name for item in (*(vs or ()), *more) for name in item.split(","))
        return {**data, "vs": peers or None, "more_peers": ()}

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise UserError(f"no bench {kind!r}: choose from {', '.join(KINDS)}")
        return kind

    @model_validator(mode="after")
    def _plan_is_whole(self) -> Self:
        if (self.plan is None) != (self.hours is None) or (self.prices is not None and self.plan is None):
            raise UserError("--plan N goes with --hours H, and --prices with both")
        if self.plan is not None and self.kind != "pipeline":
            raise UserError("--plan is of: tubelet bench pipeline")
        return self


def missing_peer(peer: str, reason: object) -> UserError:
    """The error for a peer that is not installed."""
    return UserError(
        f"the peer {peer} cannot be used: {reason}\npip install 'tubelet[bench]', or leave it out with --vs"
    )


def command(config: BenchCommand) -> None:
    """Measure against the best peers and against the limit; the default run ends within 5 minutes.

    A peer that is not installed is an error unless --vs leaves it out. The last line is a JSON summary.

    Example: tubelet bench decode --vs decord2 --vs torchcodec --json rows.jsonl
    """
    rows = importlib.import_module(f"tubelet_jobs.benches.{config.kind}").run(config)
    show(rows)
    if config.json_file is not None:
        Path(config.json_file).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print_summary({"bench": config.kind, "rows": len(rows), "json": config.json_file})


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table: a column for every key, numbers short."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=max(120, 14 * len(columns))).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

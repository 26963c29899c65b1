"""``tubelet bench``: measure against the best peers, in one run, as ratios."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tubelet.config import UserError

from tubelet_jobs.common import print_summary

KINDS = ("decode", "pipeline", "model", "train", "label")


@dataclass(frozen=True)
class BenchOptions:
    """What the command line asks of a bench.

    ``vs``: peers to compare with (None: all that the bench knows). ``full``: no bound on time. ``videos``:
    a folder to use instead of what the bench makes itself.
    """

    vs: tuple[str, ...] | None = None
    full: bool = False
    videos: str | None = None

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


def missing_peer(peer: str, reason: object) -> UserError:
    """The error for a peer that is not installed."""
    return UserError(
        f"the peer {peer} cannot be used: {reason}\npip install 'tubelet[bench]', or leave it out with --vs"
    )


def command(  # noqa: PLR0917 - the command line's arguments
    kind: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(KINDS)}.", metavar="KIND")],
    more_peers: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None,
    vs: Annotated[
        list[str] | None,
        typer.Option("--vs", metavar="PEER", help="Compare with these peers only (repeatable)."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Everything, however long it takes.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write one JSON row a line to this file.")
    ] = None,
    videos: Annotated[str | None, typer.Option("--videos", help="decode: a folder of videos to use.")] = None,
) -> None:
    """Measure against the best peers and against the limit; the default run ends within 5 minutes.

    A peer that is not installed is an error unless --vs leaves it out. The last line is a JSON summary.

    Example: tubelet bench decode --vs decord2 --vs torchcodec --json rows.jsonl
    """
    if kind not in KINDS:
        raise UserError(f"no bench {kind!r}: choose from {', '.join(KINDS)}")
    if more_peers and not vs:
        raise UserError(f"unexpected argument {more_peers[0]!r}: name peers with --vs")
    peers = (
        None if vs is None else tuple(name for item in (*vs, *(more_peers or ())) for name in item.split(","))
    )
    rows = importlib.import_module(f"tubelet_jobs.benches.{kind}").run(BenchOptions(peers, full, videos))
    show(rows)
    if json_file is not None:
        json_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print_summary({"bench": kind, "rows": len(rows), "json": None if json_file is None else str(json_file)})


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

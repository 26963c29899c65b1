"""``tubelet index``: make the manifest of a bucket, or bring it up to date."""

from __future__ import annotations

from typing import Annotated

import typer
from tubelet.config import load_settings
from tubelet.corpus.index import IndexConfig, IndexSummary, index_corpus

from tubelet_jobs.common import Anonymous, DryRun, print_summary, say


def command(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")
    ],
    *,
    out: Annotated[
        str,
        typer.Option("--out", metavar="MANIFEST", help="Where to: a folder, or a name ending in .parquet."),
    ],
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="FILE|folders", help="CSV or Parquet with path (or uri) and label."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="SPEC", help="train=0.8,val=0.1,test=0.1; column:NAME; group:REGEX."),
    ] = None,
    include: Annotated[
        str | None, typer.Option("--include", metavar="GLOB", help="Only these, for example '*.mp4'.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Bring an existing manifest up to date; opens only what changed.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Videos opened at once (default: twice the cores).")
    ] = None,
    anonymous: Anonymous = False,
    dry_run: DryRun = False,
) -> None:
    """List the videos under SRC, look into each, join labels and splits, and write the manifest.

    Labels: a table with `path` or `uri`, `label` (or `label_HEAD`; `a|b` is two labels), and where present
    `split` and `group`; or `folders`, where each class has a folder. Splits: by a hash that never changes
    (the default), by the label file's column, or so that a group (a person, a scene) stays together.

    Example: tubelet index s3://bucket/videos --out s3://bucket/manifest --labels s3://bucket/labels.csv
    """
    given = {
        "src": src,
        "out": out,
        "labels": labels,
        "split": split,
        "include": include,
        "update": update,
        "dry_run": dry_run,
        "workers": workers,
        "options": {"anonymous": anonymous},
    }
    summary = index_corpus(load_settings(IndexConfig, given))
    _report(summary)
    print_summary({name: value for name, value in summary.to_dict().items() if name != "warnings"})


def _report(summary: IndexSummary) -> None:
    for warning in summary.warnings:
        say(f"note: {warning}")
    splits = ", ".join(f"{name} {count}" for name, count in summary.splits.items()) or "none"
    say(f"{summary.objects} objects, {summary.labelled} with a label; splits: {splits}")
    if summary.dry_run:
        say(f"dry run: would open {summary.to_probe} objects and write {summary.out}")

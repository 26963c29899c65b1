"""What an evaluation leaves behind: scores, tables, figures, a page of the worst mistakes."""

from __future__ import annotations

import csv
import io
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tubelet import storage
from tubelet.cells import defused
from tubelet.config import UserError
from tubelet.evaluation.evaluate import Evaluation
from tubelet.evaluation.figures import evaluation_figures
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.output import MakePage, parquet_bytes
from tubelet.inference.schema import table_of
from tubelet.inference.shipping import Answers, row_shape
from tubelet.inference.sink import part_name
from tubelet.plain_json import json_text
from tubelet.storage import StorageOptions, with_retries
from tubelet.tracking import Tracker

SCORES_FILE = "metrics.json"
_WORST = 100

_log = logging.getLogger(__name__)


def check_out(out: str | None, options: StorageOptions) -> None:
    """An earlier evaluation in ``out`` may be replaced; anything else there is left alone.

    Raises:
        UserError: it holds something else.
    """
    if out is None or not storage.exists(out, options):
        return
    if storage.stat(storage.join(out, SCORES_FILE), options) is None:
        raise UserError(f"{out} exists and is no evaluation: choose another --out")


def publish(
    evaluation: Evaluation,
    summary: Mapping[str, Any],
    bundle: ModelBundle,
    tracker: Tracker,
    *,
    out: str | None,
    options: StorageOptions,
    make_page: MakePage | None = None,
) -> None:
    """Figures and tables to MLflow and, with ``out``, to a folder; the scores go last there.

    Args:
        make_page: makes the page of the worst mistakes.
    """
    text = json_text(summary, indent=1)
    tracker.log_metrics({k: v for k, v in summary.items() if isinstance(v, (int, float))})
    with tempfile.TemporaryDirectory(prefix="tubelet-evaluate-") as name:
        folder = Path(name)
        _write(evaluation, bundle, folder, make_page)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                tracker.log_file(path, f"figures/{path.name}" if path.suffix == ".png" else path.name)
        if out is not None:
            with_retries(lambda: _replace(out, folder, text, options))
    tracker.log_text(text, SCORES_FILE)


def _replace(out: str, folder: Path, text: str, options: StorageOptions) -> None:
    storage.delete_tree(out, options)
    storage.upload_dir(folder, out, options)
    storage.write_bytes(storage.join(out, SCORES_FILE), text.encode(), options)


def _write(evaluation: Evaluation, bundle: ModelBundle, folder: Path, make_page: MakePage | None) -> None:
    for head, report in evaluation.reports.items():
        suffix = "" if len(evaluation.reports) == 1 else f"_{head}"
        (folder / f"per_class{suffix}.csv").write_text(_csv(report.per_class), "utf-8")
    for file, figure in evaluation_figures(evaluation.reports):
        figure.savefig(folder / file, dpi=120)
    write_predictions(evaluation.rows, bundle, folder / "predictions")
    worst = evaluation.mistakes(_WORST)
    if worst:
        write_predictions(worst, bundle, folder / "worst")
    if worst and make_page is not None:
        try:
            make_page(str(folder / "worst"), str(folder / "worst.html"))
        except Exception:  # the scores are what the job is for
            _log.warning("no page of the worst mistakes could be made", exc_info=True)


def write_predictions(rows: Sequence[Mapping[str, Any]], bundle: ModelBundle, folder: Path) -> None:
    """A predictions table as ``tubelet label`` writes it, with the true labels beside."""
    shape = row_shape(bundle, Answers())
    schema = shape.schema()
    for suffix in shape.suffixes.values():
        schema = schema.append(pa.field(f"label_true{suffix}", pa.string()))
        schema = schema.append(pa.field(f"score_true{suffix}", pa.float32()))
    schema = schema.append(pa.field("correct", pa.bool_()))
    folder.mkdir(parents=True)
    (folder / part_name(0)).write_bytes(parquet_bytes(table_of(rows, schema)))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: defused(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue()


def card_text(evaluation: Evaluation, objects: int) -> str:
    """The scores and those of each class, as Markdown for the description of a model."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.scores.items())
    text = [f"{objects} videos: {scores}"]
    for head, report in evaluation.reports.items():
        rows = [row for row in report.per_class if row["videos"]]
        title = "class" if len(evaluation.reports) == 1 else head
        found = [f"| {row['class']} | {row['videos']} | {_figure(row.get('recall'))} |" for row in rows]
        text += ["", f"| {title} | videos | recall |", "| --- | --- | --- |", *found]
    return "\n".join(text)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def lines(evaluation: Evaluation) -> Iterable[str]:
    """For a terminal: scores with their intervals, and the ten classes that do worst."""
    for name, value in evaluation.scores.items():
        interval = evaluation.intervals.get(name)
        within = f"  (95%: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        yield f"{name:24} {value:.4f}{within}"
    for head, report in evaluation.reports.items():
        title = "class" if len(evaluation.reports) == 1 else head
        yield f"\n{title:32} {'videos':>6} {'recall':>7} {'ap':>7}  taken for"
        for row in _weakest(report.per_class):
            recall, taken = row.get("recall"), row.get("taken_for") or ""
            shown = "" if recall is None else f"{recall:.3f}"
            name = f"{row['class']!s:.32}"
            yield f"{name:32} {row['videos']:6} {shown:>7} {row['average_precision']:7.3f}  {taken}"


def _weakest(rows: Iterable[Mapping[str, Any]], count: int = 10) -> list[Mapping[str, Any]]:
    seen = [row for row in rows if row["videos"]]
    return sorted(seen, key=lambda row: row.get("recall") or row["average_precision"])[:count]

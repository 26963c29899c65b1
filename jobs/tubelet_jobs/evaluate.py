"""``tubelet evaluate``: how good a model is on the labelled videos of a split."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from tubelet.config import UserError

from tubelet_jobs.common import Anonymous, DryRun, RayAddress, TrackingUri, connect_ray, print_summary, say

if TYPE_CHECKING:
    from tubelet.evaluation.ablation import Ablation
    from tubelet.evaluation.evaluate import Evaluation
    from tubelet.inference.bundle import ModelBundle
    from tubelet.storage import StorageOptions
    from tubelet.tracking import Tracker

SCORES_FILE = "metrics.json"
_WORST = 100


def command(  # noqa: PLR0917 - typer reads them as options
    model: Annotated[str, typer.Option("--model", help="train --out, models:/NAME@ALIAS or runs:/ID.")],
    manifest: Annotated[str, typer.Option("--manifest", help="Manifest made by `tubelet index`.")],
    split: Annotated[str, typer.Option("--split", help="Which videos.")] = "test",
    views: Annotated[str, typer.Option("--views", help="Temporal clips x spatial crops.")] = "4x3",
    out: Annotated[str | None, typer.Option("--out", help="Folder for tables and figures.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Views in one forward pass.")] = 8,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Decode workers.")] = None,
    max_error_rate: Annotated[float, typer.Option(help="Share of videos that may fail.")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
    ablate: Annotated[
        str,
        typer.Option(
            "--ablate", metavar="none|shuffle|one-frame", help="Frames in a random order, or one only."
        ),
    ] = "none",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "tubelet",
    ray_address: RayAddress = None,
    tracking_uri: TrackingUri = None,
    anonymous: Anonymous = False,
    dry_run: DryRun = False,
) -> None:
    """Measure a model on the labelled videos of a split: top-1, top-5, classes, calibration.

    Each video is cut into several views whose logits are averaged, as in the ViViT paper. Videos that cannot
    be decoded are counted, and left out of the measures. --out gets metrics.json, tables, figures, a
    predictions table and a page of the worst mistakes. --ablate tells how much the model lives on motion:
    what is left when each clip's frames are shuffled, or one of them stands still.

    Example: tubelet evaluate --model s3://bucket/run1 --manifest s3://bucket/manifest --views 4x3
    """
    from tubelet.corpus.fingerprint import fingerprint
    from tubelet.corpus.manifest import read_manifest
    from tubelet.evaluation.evaluate import EvaluationConfig, labelled_rows
    from tubelet.inference.bundle import ModelBundle
    from tubelet.storage import StorageOptions
    from tubelet.training.recipe import parse_views

    options = StorageOptions(anonymous=anonymous)
    try:
        config = EvaluationConfig(
            parse_views(views),
            batch,
            workers,
            seed,
            ablation=_ablation(ablate),
            max_error_rate=max_error_rate,
            storage=options,
        )
    except ValueError as error:
        raise UserError(f"--views: {error}") from error
    _check_out(out, options)
    table = read_manifest(manifest, options=options)
    bundle = ModelBundle.load(model, tracking_uri, options)
    rows = labelled_rows(table, bundle, split)
    say(
        f"evaluate {bundle.source} ({bundle.identity}) on {len(rows)} videos of {split!r}, {views} views each"
    )
    if dry_run:
        print_summary({"dry_run": True, "objects": len(rows)})
        return
    connect_ray(ray_address)
    data = fingerprint(rows)
    tracker = _start_tracker(
        tracking_uri,
        experiment,
        bundle,
        manifest=manifest,
        data=data,
        params={"split": split, "views": views, "ablate": ablate},
    )
    with tracker:
        started_s = time.monotonic()
        evaluation = _run(bundle, table, split, config)
        seconds = time.monotonic() - started_s
        speed = round(len(rows) / seconds, 3)
        summary = {**evaluation.summary(), "videos_per_s": speed, "model": bundle.identity}
        _publish(evaluation, summary, bundle, tracker, out=out, options=options)
    _print_table(evaluation)
    print_summary({**summary, "out": out, "run_id": tracker.run_id})


def _ablation(name: str) -> Ablation:
    from tubelet.evaluation.ablation import Ablation

    if name not in get_args(Ablation):
        raise UserError(f"--ablate {name!r}: choose one of {', '.join(get_args(Ablation))}")
    return cast("Ablation", name)


def _run(bundle: ModelBundle, table: Any, split: str, config: Any) -> Evaluation:
    from tubelet.evaluation.evaluate import evaluate_model, labelled_rows
    from tubelet.progress import ProgressLine

    errors = 0
    with ProgressLine("evaluate", len(labelled_rows(table, bundle, split)), "videos") as progress:

        def advance(videos: int, failed: int) -> None:
            nonlocal errors
            errors += failed
            progress.advance(videos, errors=errors)

        return evaluate_model(bundle, table, split, config, advance)


def _start_tracker(
    uri: str | None,
    experiment: str,
    bundle: ModelBundle,
    *,
    manifest: str,
    data: str,
    params: Mapping[str, object],
) -> Tracker:
    from tubelet.inference.bundle import find_link
    from tubelet.tracking import Tracker

    tags = {"tubelet.job": "evaluate", "tubelet.manifest": manifest, "tubelet.data_fingerprint": data}
    tracker = Tracker.start(
        uri,
        experiment,
        f"evaluate-{params['split']}",
        tags=tags,
        params={"model": bundle.source, **params, "sampling": bundle.clip.sampling},
    )
    tracker.link_model(find_link(bundle, tracker.uri))
    return tracker


def _publish(
    evaluation: Evaluation,
    summary: Mapping[str, Any],
    bundle: ModelBundle,
    tracker: Tracker,
    *,
    out: str | None,
    options: StorageOptions,
) -> None:
    """Figures and tables to MLflow and, with ``out``, to a folder; the scores go last there."""
    from tubelet import storage
    from tubelet.evaluation.figures import evaluation_figures

    text = json.dumps(summary, indent=1)
    tracker.log_metrics({k: v for k, v in summary.items() if isinstance(v, (int, float))})
    with tempfile.TemporaryDirectory(prefix="tubelet-evaluate-") as name:
        folder = Path(name)
        for head, report in evaluation.reports.items():
            suffix = "" if len(evaluation.reports) == 1 else f"_{head}"
            (folder / f"per_class{suffix}.csv").write_text(_csv(report.per_class), "utf-8")
        for file, figure in evaluation_figures(evaluation.reports):
            figure.savefig(folder / file, dpi=120)
        _write_predictions(evaluation.rows, bundle, folder / "predictions")
        worst = evaluation.mistakes(_WORST)
        if worst:
            _write_predictions(worst, bundle, folder / "worst")
            _write_page(folder / "worst", folder / "worst.html", options)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                tracker.log_file(path, f"figures/{path.name}" if path.suffix == ".png" else path.name)
        if out is not None:
            storage.upload_dir(folder, out, options)
            storage.write_bytes(storage.join(out, SCORES_FILE), text.encode(), options)
    tracker.log_text(text, SCORES_FILE)


def _write_predictions(rows: Sequence[Mapping[str, Any]], bundle: ModelBundle, folder: Path) -> None:
    """A predictions table as `tubelet label` writes it, with the true labels beside."""
    import pyarrow as pa
    from tubelet.inference.output import parquet_bytes
    from tubelet.inference.schema import RowShape, table_of
    from tubelet.inference.sink import part_name

    shape = RowShape({head: len(names) for head, names in bundle.labels.items()})
    schema = shape.schema()
    for suffix in shape.suffixes.values():
        schema = schema.append(pa.field(f"label_true{suffix}", pa.string()))
        schema = schema.append(pa.field(f"score_true{suffix}", pa.float32()))
    schema = schema.append(pa.field("correct", pa.bool_()))
    folder.mkdir(parents=True)
    (folder / part_name(0)).write_bytes(parquet_bytes(table_of(rows, schema)))


def _write_page(predictions: Path, page: Path, options: StorageOptions) -> None:
    from tubelet.review.page import ReviewConfig, review

    review(ReviewConfig(predictions=str(predictions), out=str(page), anonymous=options.anonymous))


def _check_out(out: str | None, options: StorageOptions) -> None:
    """An earlier evaluation in ``out`` is replaced; anything else there is left alone."""
    from tubelet import storage

    if out is None or not storage.exists(out, options):
        return
    if storage.stat(storage.join(out, SCORES_FILE), options) is None:
        raise UserError(f"{out} exists and is no evaluation: choose another --out")
    storage.delete_tree(out, options)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print_table(evaluation: Evaluation) -> None:
    """Scores with their intervals, and the ten classes that do worst, for the person at the terminal."""
    for name, value in evaluation.scores.items():
        interval = evaluation.intervals.get(name)
        within = f"  (95%: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        say(f"{name:24} {value:.4f}{within}")
    for head, report in evaluation.reports.items():
        title = "class" if len(evaluation.reports) == 1 else head
        say(f"\n{title:32} {'videos':>6} {'recall':>7} {'ap':>7}  taken for")
        for row in _weakest(report.per_class):
            recall, taken = row.get("recall"), row.get("taken_for") or ""
            shown = "" if recall is None else f"{recall:.3f}"
            name = f"{row['class']!s:.32}"
            say(f"{name:32} {row['videos']:6} {shown:>7} {row['average_precision']:7.3f}  {taken}")


def _weakest(rows: Iterable[Mapping[str, Any]], count: int = 10) -> list[Mapping[str, Any]]:
    seen = [row for row in rows if row["videos"]]
    return sorted(seen, key=lambda row: row.get("recall") or row["average_precision"])[:count]

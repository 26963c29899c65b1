"""The loop on what a demo has left: corrections, index, train, evaluate, and what got better."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.manifest import read_manifest
from tubelet.review.config import Queue
from tubelet.review.corrections import Correction, corrections_csv
from tubelet.review.queues import choose, read_columns

from tubelet_jobs.common import say
from tubelet_jobs.demo_files import read_truth
from tubelet_jobs.demo_steps import Step, Steps, steps_summary

# Rows that are corrected where nobody has done so by hand, and steps of the training that learns from them.
_QUEUE = Queue("uncertain", 12)
_STEPS = ("max_steps=80", "checkpoint_every=40", "schedule.warmup_steps=5", "lr=3e-4")


def check_loop(out: Path) -> None:
    """Refuse a folder without a demo.

    Raises:
        UserError: what to do first.
    """
    wanted = (out / "predictions", out / "model", out / "manifest", out / "corpus")
    if not all(path.exists() for path in wanted):
        raise UserError(f"{out} holds no finished demo: run tubelet demo --out {out} first")


def run_loop(
    out: Path, recipe: str, overrides: tuple[str, ...], tracking_uri: str
) -> tuple[list[Step], dict[str, Any]]:
    """Corrections, index, train from the demo's model, evaluate as before, compare; Ray is up already.

    Returns:
        What the jobs told, and the loop's summary.
    """
    from tubelet_jobs import evaluate, index, review, train

    loop = out / "loop"
    storage.delete_tree(str(loop))
    loop.mkdir()
    corrections = out / "predictions/_review/corrections.csv"
    if not corrections.is_file():
        corrections = loop / "corrections.csv"
        _stand_in(out, corrections)
    labels = loop / "labels.csv"
    _write_labels(out, labels)
    steps = Steps()
    manifest, model = str(loop / "manifest"), str(loop / "model")
    indexing = index.IndexOptions(
        src=str(out / "corpus"),
        out=manifest,
        labels=(str(labels), str(corrections)),
        split="column:split",
    )
    steps.run(index.command, indexing)
    training = train.TrainOptions(
        manifest=manifest,
        out=model,
        recipe=recipe,
        init=str(out / "model"),
        overrides=(*_STEPS, *overrides),
        name="demo",
        tracking_uri=tracking_uri,
    )
    steps.run(train.command, training)
    evaluation = evaluate.EvaluateOptions.model_validate(
        {
            "model": model,
            "manifest": str(out / "manifest"),
            "views": "4x1",
            "out": str(loop / "evaluation"),
            "tracking_uri": tracking_uri,
        }
    )
    steps.run(evaluate.command, evaluation)
    page = str(loop / "what-changed.html")
    before, after = (str(folder / "evaluation/predictions") for folder in (out, loop))
    steps.run(review.command, review.ReviewOptions(predictions=before, other=after, out=page))
    compared = steps_summary(steps.done, "review")["compared"]
    return steps.done, {
        "corrections": str(corrections),
        "top1": steps_summary(steps.done, "evaluate").get("top1"),
        "compared": compared["known"],
        "page": page,
        "jobs": {step.job: {"seconds": step.seconds, **step.summary} for step in steps.done},
    }


def _stand_in(out: Path, target: Path) -> None:
    """Corrections of the least certain rows by what the corpus knows, where nobody has made any."""
    predictions, truth = str(out / "predictions"), read_truth(out)
    places = choose(_QUEUE, predictions, None, storage.DEFAULT_OPTIONS)
    say(f"no corrections yet: the truth of the {len(places)} least certain rows stands in for yours")
    rows = read_columns(predictions, ["key", "window", "uri", "label"], storage.DEFAULT_OPTIONS)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    made = [
        Correction(
            key=row["key"],
            window=row["window"],
            uri=row["uri"],
            labels={"label": truth["inbox/" + storage.name_of(row["uri"])]},
            previous=row["label"],
            by="demo",
            at=at,
        )
        for row in rows.to_pylist()
        if (row["key"], row["window"]) in places
    ]
    target.write_text(corrections_csv(made), "utf-8")


def _write_labels(out: Path, target: Path) -> None:
    """The labels and splits there were, and the inbox: to be trained on once its videos have labels."""
    known = read_manifest(str(out / "manifest"), ["path", "label", "split"])
    known = known.filter(pc.is_valid(known["label"]))
    with target.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for row in known.to_pylist():
            rows.writerow([f"labelled/{row['path']}", row["label"], row["split"]])
        for path in read_truth(out):
            rows.writerow([path, "", "train"])

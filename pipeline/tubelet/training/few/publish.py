"""What a choice leaves behind: the model, the table of candidates, and the out-of-fold predictions."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tubelet import storage
from tubelet.inference.bundle import ModelBundle
from tubelet.storage import with_retries
from tubelet.tracking import Tracker
from tubelet.training.build import metadata_of
from tubelet.training.card import model_card
from tubelet.training.few.choose import Choice
from tubelet.training.few.task import Task
from tubelet.training.prepare import Prepared
from tubelet.training.state import MODEL_FILE
from tubelet.vivit import ViViT

# Below the output, under names that readers skip.
OOF = "_oof/part-00000.parquet"
TABLE = "candidates.json"


def log_choice(choice: Choice, task: Task, tracker: Tracker) -> dict[str, Any]:
    """The table and the figures of the choice to MLflow; returns what the summary says of it."""
    rows = choice.rows(task)
    tracker.log_table(rows, TABLE)
    place = choice.candidates.index(choice.chosen)
    interval, worth = choice.intervals[place], choice.corrected
    figures = {
        f"cv_{task.measure}": choice.means[place],
        f"cv_{task.measure}_low": interval[0],
        f"cv_{task.measure}_high": interval[1],
        f"cv_{task.measure}_corrected": worth.mean,
        f"cv_{task.measure}_corrected_low": worth.interval[0],
        f"cv_{task.measure}_corrected_high": worth.interval[1],
        "cv_folds": len(choice.chosen.logits) * len(choice.folds.repeats[0]),
        "cv_folds_lacking_a_class": choice.folds.lacking_fit + choice.folds.lacking_scored,
    }
    tracker.log_metrics(figures)
    if choice.warnings:
        tracker.log_text("\n".join(choice.warnings) + "\n", "warnings.txt")
    return {"chosen": choice.chosen.name, **figures, "warnings": choice.warnings}


def out_of_fold(choice: Choice, task: Task, about: pa.Table) -> pa.Table:
    """A row for each clip and repeat: who, the truth, and the logits of a head that never saw its fold.

    Columns: ``key, segment, uri, group, repeat, fold`` and, for each head, ``label_true``, ``label`` and
    ``logits`` (with ``_<head>`` where there are several), in the order of the model's labels.
    """
    n = len(task)
    parts = []
    for repeat, logits in enumerate(choice.chosen.logits):
        fold = np.full(n, -1, np.int32)
        for number, (_, scored) in enumerate(choice.folds.repeats[repeat]):
            fold[scored] = number
        table = about.select(["key", "segment", "uri", "group"])
        table = table.append_column("repeat", pa.array(np.full(n, repeat, np.int32)))
        table = table.append_column("fold", pa.array(fold))
        for head, where in task.columns().items():
            suffix = "" if len(task.labels) == 1 else f"_{head}"
            names, found = task.labels[head], logits[:, where]
            table = table.append_column(f"label_true{suffix}", pa.array(_truth(task, head)))
            table = table.append_column(f"label{suffix}", pa.array([names[i] for i in found.argmax(1)]))
            table = table.append_column(f"logits{suffix}", pa.array(list(found), pa.list_(pa.float64())))
        parts.append(table)
    return pa.concat_tables(parts)


def _truth(task: Task, head: str) -> list[Any]:
    names, values = task.labels[head], task.targets[head]
    if task.multilabel:
        return [[name for name, is_so in zip(names, row, strict=True) if is_so] for row in values]
    return [names[i] for i in values]


def write_out_of_fold(table: pa.Table, prepared: Prepared, tracker: Tracker) -> None:
    """The predictions beside the model and in the run."""
    request = prepared.request
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(storage.join(request.out, OOF), buffer.getvalue(), request.out_options)
    with tempfile.TemporaryDirectory(prefix="tubelet-oof-") as folder:
        path = Path(folder) / "out_of_fold.parquet"
        path.write_bytes(buffer.getvalue())
        tracker.log_file(path)


def publish_model(
    model: ViViT, prepared: Prepared, tracker: Tracker, notes: dict[str, Any]
) -> dict[str, Any]:
    """Register the model, then write it: whoever sees it sees the run's end; returns the summary's part."""
    request, name = prepared.request, prepared.request.model_name
    metadata = {**metadata_of(prepared), **notes, "run_id": tracker.run_id}
    bundle = ModelBundle(model, prepared.examples.labels, prepared.spec, request.recipe.multilabel, metadata)
    with tempfile.TemporaryDirectory(prefix="tubelet-final-") as folder:
        local = bundle.save(Path(folder) / "step")
        card = model_card(prepared, notes)
        version = tracker.log_model(local.parent, name, alias="final", card=card)
        target = storage.join(request.out, MODEL_FILE)
        with_retries(lambda: storage.upload_file(local, target, request.out_options))
    return {
        "out": request.out,
        "steps": 0,
        "run_id": tracker.run_id,
        "model_name": name,
        "model_version": version,
    }

"""Evaluation: rows of inference joined with the truth; every video of a split once, failures included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from tubelet.clips import Views
from tubelet.clips.decoder import REFERENCE
from tubelet.config import Settings, UserError
from tubelet.corpus.selection import class_names, select
from tubelet.error_rate import ErrorRate, MaxErrorRate
from tubelet.evaluation.ablation import Ablate, Ablation
from tubelet.evaluation.metrics import (
    HeadReport,
    Interval,
    bootstrap_interval,
    joint_correct,
    multi_label_report,
    single_label_report,
)
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.graph import TableRequests, inference_stream, iter_result_tables, resources_for
from tubelet.inference.schema import REQUEST_SCHEMA
from tubelet.inference.shipping import Answers, model_job, row_shape, ship
from tubelet.inference.workers import DecodeJob
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions
from tubelet.video import ErrorCode, Limits, Status

Count = Annotated[int, Field(ge=1)]
Row = dict[str, Any]


class EvaluationConfig(Settings):
    """How to evaluate.

    Attributes:
        views: temporal clips x spatial crops.
        batch: most views in one forward pass.
        workers: decode workers; they predict as well where there is no GPU. None: what the cluster has.
        seed: of the bootstrap, and of the ablation.
        ablation: what is taken from the clips, to see how much the model lives on it.
        topk: labels per row.
        max_error_rate: share of the videos that may fail.
    """

    views: Views = (1, 1)
    batch: Count = 8
    workers: Count | None = None
    seed: int = 0
    ablation: Ablation = "none"
    topk: Count = 5
    max_error_rate: MaxErrorRate = 0.2
    storage: StorageOptions = DEFAULT_OPTIONS
    limits: Limits = Limits()


@dataclass
class Evaluation:
    """What came out.

    Attributes:
        scores, intervals: by name (of several heads: ``noun/top1``).
        reports: by head.
        rows: one prediction per video, failures included: columns as in a predictions table, with ``correct``
            and, for each head, ``label_true`` and ``score_true``: the truth and what the model gave it.
        objects, ok, partial, errors: how many videos.
    """

    scores: dict[str, float]
    intervals: dict[str, Interval]
    reports: dict[str, HeadReport]
    rows: list[Row]
    objects: int
    ok: int
    partial: int
    errors: int

    def summary(self) -> dict[str, Any]:
        """Plain values for a job's summary and for MLflow."""
        ends = {
            f"{name}_{end}": ci[i]
            for name, ci in self.intervals.items()
            for i, end in enumerate(("low", "high"))
        }
        counts = {"objects": self.objects, "ok": self.ok, "partial": self.partial, "errors": self.errors}
        return {**counts, **self.scores, **ends}

    def mistakes(self, limit: int = 100) -> list[Row]:
        """The rows that the model is most sure of and wrong about, worst first."""
        wrong = [row for row in self.rows if row["status"] == Status.OK and row["correct"] is False]
        return sorted(wrong, key=lambda row: -row["score"])[:limit]


def evaluate_model(
    bundle: ModelBundle,
    manifest: pa.Table,
    split: str,
    config: EvaluationConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, errors: None,
) -> Evaluation:
    """Evaluate ``bundle`` on the labelled videos of ``split``. Ray must be running.

    Args:
        on_progress: called with the videos newly done, and the failures among them.

    Raises:
        UserError: the split has no labelled video; it has labels the model does not know; more videos failed
            than ``max_error_rate`` allows.
    """
    config = config or EvaluationConfig()
    truth = labelled_rows(manifest, bundle, split)
    rows = _infer(bundle, truth, config, on_progress)
    return _report(bundle, truth, rows, config)


def labelled_rows(manifest: pa.Table, bundle: ModelBundle, split: str) -> pa.Table:
    """The rows to evaluate, ordered by key; their labels are checked against the model's classes.

    Raises:
        UserError: there are none, or labels that the model does not know.
    """
    rows, columns = manifest, label_columns(bundle)
    for column in columns.values():
        rows = select(rows, split, labelled=True, head=column, required=True, ordered=True)
    bundle.same_classes(
        {head: set(class_names(rows, column)) for head, column in columns.items()}, f"split {split!r}"
    )
    return rows


def label_columns(bundle: ModelBundle) -> dict[str, str]:
    """Manifest column of each head: ``label`` where there is one head of that name, else ``label_<head>``."""
    return {head: head if head == "label" else f"label_{head}" for head in bundle.labels}


# ---- inference


def _requests(truth: pa.Table) -> pa.Table:
    """What is asked of the graph: each row of ``truth``, by its number."""
    count = len(truth)
    columns = {name: truth[name] for name in REFERENCE} | {
        "request": np.arange(count),
        "window": truth["segment"],
        "models": np.ones(count, np.int64),
    }
    return pa.table({name: columns[name] for name in REQUEST_SCHEMA.names}).cast(REQUEST_SCHEMA)


def _infer(
    bundle: ModelBundle, truth: pa.Table, config: EvaluationConfig, on_progress: Callable[[int, int], None]
) -> list[Row]:
    """The rows of inference in the order of ``truth``."""
    decode = DecodeJob(
        (bundle.clip,),
        config.views,
        config.storage,
        config.limits,
        None if config.ablation == "none" else Ablate(config.ablation, config.seed),
    )
    answers = Answers(config.topk, scores=True, logits=True)
    job = model_job(bundle, bundle.clip.sampling_of(config.views), answers, most_clips=config.batch)
    requests, models = TableRequests(_requests(truth)), ship([job], [bundle])
    rate = ErrorRate(config.max_error_rate, "Index again (tubelet index --update)", at_least=1)
    names = row_shape(bundle, answers).schema().names
    done: dict[int, Row] = {}
    with resources_for(decode, len(truth), workers=config.workers) as layout:
        stream = inference_stream(requests, decode, models, layout, clips=len(truth))
        for _, table in iter_result_tables(stream):
            # A worker that was killed may have handed on some rows of its task: the others do not count
            # twice.
            fresh = {row["request"]: row for row in table.to_pylist() if row["request"] not in done}
            for number, row in fresh.items():
                done[number] = {name: row[name] for name in names}
                rate.see(row["error_code"] if row["status"] == Status.ERROR else None, row["error"])
            on_progress(len(fresh), sum(row["status"] == Status.ERROR for row in fresh.values()))
    if len(done) != len(truth):
        raise RuntimeError(f"{len(truth) - len(done)} of {len(truth)} videos were not evaluated")
    rate.judge(len(truth), rate.reasons, rate.examples)
    return [done[i] for i in range(len(truth))]


# ---- join with the truth


def _report(
    bundle: ModelBundle, truth: pa.Table, rows: Sequence[Row], config: EvaluationConfig
) -> Evaluation:
    good = [i for i, row in enumerate(rows) if row["status"] == Status.OK]
    if not good:
        raise UserError(f"no video could be evaluated, the first: {rows[0]['error']}")
    suffixes = row_shape(bundle, Answers()).suffixes
    logits = {
        head: torch.tensor(np.stack([rows[i][f"logits{suffix}"] for i in good]), dtype=torch.float32)
        for head, suffix in suffixes.items()
    }
    labels = {
        head: _labels(truth, column, bundle, head, good) for head, column in label_columns(bundle).items()
    }
    groups = [str(truth["key"][i]) for i in good]
    reports = {
        head: multi_label_report(logits[head], labels[head], names)
        if bundle.multilabel
        else single_label_report(logits[head], labels[head], names, groups, seed=config.seed)
        for head, names in bundle.labels.items()
    }
    scores, intervals = _merge(reports)
    if len(reports) > 1 and not bundle.multilabel:
        for name, k in (("action_top1", 1), ("action_top5", 5)):
            correct = joint_correct(logits, labels, k).numpy()
            scores[name] = float(correct.mean())
            intervals[name] = bootstrap_interval(correct, groups, seed=config.seed)
    partial = sum(rows[i]["error_code"] == ErrorCode.PARTIAL for i in good)
    joined = _join(bundle, truth, rows, suffixes)
    return Evaluation(
        scores, intervals, reports, joined, len(rows), len(good), partial, len(rows) - len(good)
    )


def _merge(reports: Mapping[str, HeadReport]) -> tuple[dict[str, float], dict[str, Interval]]:
    prefix = {head: "" if len(reports) == 1 else f"{head}/" for head in reports}
    scores = {f"{prefix[h]}{name}": value for h, one in reports.items() for name, value in one.scores.items()}
    intervals = {f"{prefix[h]}{name}": ci for h, one in reports.items() for name, ci in one.intervals.items()}
    return scores, intervals


def _labels(truth: pa.Table, column: str, bundle: ModelBundle, head: str, good: list[int]) -> torch.Tensor:
    number = {name: i for i, name in enumerate(bundle.labels[head])}
    values = truth[column].take(pa.array(good)).to_pylist()
    if not bundle.multilabel:
        return torch.tensor([number[value] for value in values])
    hot = torch.zeros(len(values), len(number), dtype=torch.long)
    for i, value in enumerate(values):
        for one in _list(value):
            hot[i, number[one]] = 1
    return hot


def _join(
    bundle: ModelBundle, truth: pa.Table, rows: Sequence[Row], suffixes: Mapping[str, str]
) -> list[Row]:
    """Each row without all its scores and logits, and with the truth beside its answer."""
    columns = label_columns(bundle)
    left_out = {f"{name}{suffix}" for name in ("scores", "logits") for suffix in suffixes.values()}
    known = truth.select(list(columns.values())).to_pylist()
    joined = []
    for true, row in zip(known, rows, strict=True):
        kept = {name: value for name, value in row.items() if name not in left_out}
        failed = row["status"] == Status.ERROR
        kept["correct"] = None if failed else True
        for head, suffix in suffixes.items():
            labels = _list(true[columns[head]])
            kept[f"label_true{suffix}"] = ", ".join(labels)
            if not failed:
                scores, names = row[f"scores{suffix}"], bundle.labels[head]
                kept[f"score_true{suffix}"] = min(scores[names.index(name)] for name in labels)
                kept["correct"] &= row[f"label{suffix}"] in labels
        joined.append(kept)
    return joined


def _list(labels: str | Sequence[str]) -> Sequence[str]:
    """The labels of a video, one or several."""
    return [labels] if isinstance(labels, str) else labels

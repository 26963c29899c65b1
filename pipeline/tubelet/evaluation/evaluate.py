"""Evaluation: every video of a split once, several views each, averaged as the paper averages.

A Ray Data job: on GPUs decode workers feed predictors; on CPUs one actor does both, so that clips are not
copied. Each video is one row whatever the size of the cluster, and one that fails is a row with its reason.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset

from tubelet.clips import Batch, ClipDecoder
from tubelet.clips.decoder import REFERENCE
from tubelet.clips.pace import keep_pace
from tubelet.config import UserError
from tubelet.corpus.selection import class_names, select
from tubelet.evaluation.ablation import Ablation, ablate
from tubelet.evaluation.metrics import (
    HeadReport,
    Interval,
    bootstrap_interval,
    joint_correct,
    multi_label_report,
    single_label_report,
)
from tubelet.inference.bundle import ModelBundle
from tubelet.storage import StorageOptions
from tubelet.video import Limits

# Clips handed from a decode worker to a predictor in one block; more would crowd the object store.
_BLOCK_BYTES = 64 * 2**20
_MOST_ROWS = 16

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class EvaluationConfig:
    """How to evaluate. ``views``: temporal clips x spatial crops; ``batch``: views in one forward pass;
    ``workers``: decode workers on GPU machines, whole actors on CPU machines (None: what the cluster has);
    ``ablation``: what is taken from the clips, to see how much the model lives on it."""

    views: tuple[int, int] = (1, 1)
    batch: int = 8
    workers: int | None = None
    seed: int = 0
    ablation: Ablation = "none"
    topk: int = 5
    max_error_rate: float = 0.2
    storage: StorageOptions = field(default_factory=StorageOptions)
    limits: Limits = field(default_factory=Limits)


@dataclass
class Evaluation:
    """What came out. ``scores`` and ``intervals`` by name (of several heads: ``noun/top1``); ``reports`` by
    head; ``rows``: one prediction a video, failures included, columns as in a predictions table and
    ``label_true`` and ``score_true``, the truth and what the model gave it.
    """

    scores: dict[str, float]
    intervals: dict[str, Interval]
    reports: dict[str, HeadReport]
    rows: list[dict[str, Any]]
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

    def mistakes(self, limit: int = 100) -> list[dict[str, Any]]:
        """The rows that the model is most sure of and wrong about, worst first."""
        wrong = [row for row in self.rows if row["status"] == "ok" and row["correct"] is False]
        return sorted(wrong, key=lambda row: -row["score"])[:limit]


def evaluate_model(
    bundle: ModelBundle,
    manifest: pa.Table,
    split: str,
    config: EvaluationConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, errors: None,
) -> Evaluation:
    """Evaluate ``bundle`` on the labelled videos of ``split``. Ray must be running.

    ``on_progress(videos, errors)`` is called with what is newly done.

    Raises:
        UserError: the split has no labelled video; it has labels the model does not know; more videos failed
            than ``max_error_rate`` allows.
    """
    config = config or EvaluationConfig()
    rows = labelled_rows(manifest, bundle, split)
    if bundle.model.training:
        bundle.model.eval()
    done = _predict(bundle, rows, config, on_progress)
    return _report(bundle, rows, done, config)


def labelled_rows(manifest: pa.Table, bundle: ModelBundle, split: str) -> pa.Table:
    """The rows to evaluate, ordered by key; their labels are checked against the model's classes.

    Raises:
        UserError: there are none, or labels that the model does not know.
    """
    rows, columns = manifest, label_columns(bundle)
    for column in columns.values():
        rows = select(rows, split, labelled=True, head=column, required=True)
    bundle.same_classes(
        {head: set(class_names(rows, column)) for head, column in columns.items()}, f"split {split!r}"
    )
    return rows.sort_by([("key", "ascending"), ("segment", "ascending")]).combine_chunks()


def label_columns(bundle: ModelBundle) -> dict[str, str]:
    """Manifest column of each head: ``label`` where there is one head of that name, else ``label_<head>``."""
    return {head: head if head == "label" else f"label_{head}" for head in bundle.labels}


# ---- prediction


class Predictor:
    """Averages the views of decoded rows to logits; a callable for ``map_batches``."""

    def __init__(
        self, bundle: ray.ObjectRef[ModelBundle], batch: int, device: str, ablation: tuple[Ablation, int]
    ) -> None:
        # A copy: what Ray hands out lies in read-only shared memory.
        self._bundle: ModelBundle = ray.get(bundle)
        self._bundle.model.to(device)
        self._batch = batch
        self._kind, self._seed = ablation

    def __call__(self, batch: Batch) -> Arrays:
        tubelets = batch["tubelets"]
        if self._kind != "none":
            spec, seed, rows = self._bundle.clip, self._seed, zip(tubelets, batch["key"], strict=True)
            tubelets = np.stack([ablate(views, str(key), self._kind, spec, seed) for views, key in rows])
        logits = self._bundle.view_logits(tubelets, self._batch)
        return {
            "row": batch["row"],
            "error_code": batch["error_code"],
            "error": batch["error"],
            "clip_times_s": batch["clip_times_s"].reshape(len(batch["row"]), -1),
            **{f"logits_{head}": values for head, values in logits.items()},
        }


class DecodeAndPredict:
    """Both in one actor, where both use the same CPUs."""

    def __init__(
        self,
        decode: Mapping[str, Any],
        bundle: ray.ObjectRef[ModelBundle],
        batch: int,
        ablation: tuple[Ablation, int],
    ) -> None:
        torch.set_num_threads(1)  # one actor a core: more threads would fight
        self._decoder = ClipDecoder(**decode)
        self._predictor = Predictor(bundle, batch, "cpu", ablation)

    def __call__(self, batch: Batch) -> Arrays:
        return self._predictor(self._decoder(batch))


def _predict(
    bundle: ModelBundle, rows: pa.Table, config: EvaluationConfig, on_progress: Callable[[int, int], None]
) -> dict[int, dict[str, Any]]:
    """Predictions by row number, each row exactly once."""
    done: dict[int, dict[str, Any]] = {}
    for batch in _graph(bundle, rows, config).iter_batches(batch_size=None, batch_format="numpy"):
        failed = 0
        for i, row in enumerate(batch["row"]):
            if int(row) in done:
                raise RuntimeError(f"row {row} was evaluated twice")
            done[int(row)] = {name: column[i] for name, column in batch.items()}
            failed += batch["error_code"][i] not in ("", "partial")
        on_progress(len(batch["row"]), failed)
    if len(done) != len(rows):
        raise RuntimeError(f"{len(rows) - len(done)} of {len(rows)} videos were not evaluated")
    return done


def _graph(bundle: ModelBundle, rows: pa.Table, config: EvaluationConfig) -> Dataset:
    _quieten()
    requests = rows.select(REFERENCE).append_column("row", pa.array(np.arange(len(rows))))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    decode: dict[str, Any] = {
        "spec": bundle.clip,
        "views": config.views,
        "storage": config.storage,
        "limits": config.limits,
    }
    workers = config.workers or max(1, cpus - 1 if gpus else min(cpus, os.cpu_count() or 1))
    size = _block_rows(bundle, config, len(rows), workers)
    blocks = ray.data.from_blocks([requests.slice(start, size) for start in range(0, len(rows), size)])
    model, ablation = ray.put(bundle), (config.ablation, config.seed)
    if not gpus:
        return blocks.map_batches(
            DecodeAndPredict,
            fn_constructor_args=(decode, model, config.batch, ablation),
            batch_size=None,
            compute=ActorPoolStrategy(size=min(workers, math.ceil(len(rows) / size))),
            num_cpus=min(1.0, cpus / (workers + 1)),
        )
    decoded = blocks.map_batches(
        ClipDecoder,
        fn_constructor_kwargs=decode,
        batch_size=None,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    return decoded.map_batches(
        Predictor,
        fn_constructor_args=(model, config.batch, "cuda", ablation),
        batch_size=None,
        compute=ActorPoolStrategy(size=gpus),
        num_cpus=0.1,  # decoding has the whole ones; a predictor that waits for one would wait for ever
        num_gpus=1,
    )


def _quieten() -> None:
    """Progress is ours to show; Ray Data's own is for developers."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    keep_pace(context)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _block_rows(bundle: ModelBundle, config: EvaluationConfig, rows: int, workers: int) -> int:
    """Videos a block: few enough for the object store, and for all workers to have some."""
    clip_bytes = bundle.clip.tokens * bundle.clip.token_bytes * config.views[0] * config.views[1]
    return max(1, min(_BLOCK_BYTES // clip_bytes, _MOST_ROWS, rows // (4 * workers)))


# ---- measures


def _report(
    bundle: ModelBundle, rows: pa.Table, done: Mapping[int, Mapping[str, Any]], config: EvaluationConfig
) -> Evaluation:
    good = [i for i in range(len(rows)) if done[i]["error_code"] in ("", "partial")]
    failed = len(rows) - len(good)
    if not good or failed > config.max_error_rate * len(rows):
        reason = next(done[i]["error"] for i in range(len(rows)) if i not in set(good))
        raise UserError(
            f"{failed} of {len(rows)} videos could not be decoded, the first: {reason}; index again "
            "(tubelet index --update), or raise --max-error-rate"
        )
    logits = {
        head: torch.from_numpy(np.stack([done[i][f"logits_{head}"] for i in good])) for head in bundle.labels
    }
    labels = {
        head: _labels(rows, column, bundle, head, good) for head, column in label_columns(bundle).items()
    }
    groups = [str(rows["key"][i]) for i in good]
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
    partial = sum(done[i]["error_code"] == "partial" for i in good)
    table = _rows(bundle, rows, done, config)
    return Evaluation(scores, intervals, reports, table, len(rows), len(good), partial, failed)


def _merge(reports: Mapping[str, HeadReport]) -> tuple[dict[str, float], dict[str, Interval]]:
    prefix = {head: "" if len(reports) == 1 else f"{head}/" for head in reports}
    scores = {f"{prefix[h]}{name}": value for h, one in reports.items() for name, value in one.scores.items()}
    intervals = {f"{prefix[h]}{name}": ci for h, one in reports.items() for name, ci in one.intervals.items()}
    return scores, intervals


def _labels(rows: pa.Table, column: str, bundle: ModelBundle, head: str, good: list[int]) -> torch.Tensor:
    number = {name: i for i, name in enumerate(bundle.labels[head])}
    values = rows[column].take(pa.array(good)).to_pylist()
    if not bundle.multilabel:
        return torch.tensor([number[value] for value in values])
    hot = torch.zeros(len(values), len(number), dtype=torch.long)
    for i, value in enumerate(values):
        for one in [value] if isinstance(value, str) else value:
            hot[i, number[one]] = 1
    return hot


def _rows(
    bundle: ModelBundle, rows: pa.Table, done: Mapping[int, Mapping[str, Any]], config: EvaluationConfig
) -> list[dict[str, Any]]:
    columns = label_columns(bundle)
    known = rows.select(["key", "uri", "etag", *columns.values()]).to_pylist()
    return [_row(bundle, columns, known[i], done[i], config) for i in range(len(known))]


def _row(
    bundle: ModelBundle,
    columns: Mapping[str, str],
    known: Mapping[str, Any],
    done: Mapping[str, Any],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """One prediction, as in a predictions table, with the truth beside it."""
    code, failed = str(done["error_code"]), done["error_code"] not in ("", "partial")
    row: dict[str, Any] = {
        "key": known["key"],
        "window": 0,
        "uri": known["uri"],
        "etag": known["etag"],
        "status": "error" if failed else "ok",
        "error_code": code or None,
        "error": str(done["error"]) or None,
        "views": config.views[0] * config.views[1],
        "model": bundle.identity,
        "sampling": bundle.clip.sampling,
        "correct": None,
    }
    for i, (head, column) in enumerate(columns.items()):
        suffix = "" if i == 0 else f"_{head}"
        row[f"label_true{suffix}"] = _text(known[column])
        if not failed:
            scores = bundle.probabilities({head: done[f"logits_{head}"]})[head]
            row |= _prediction(bundle.labels[head], scores, suffix, config.topk)
            row[f"score_true{suffix}"] = min(
                float(scores[bundle.labels[head].index(x)]) for x in _list(known[column])
            )
    if not failed:
        row["clip_times_s"] = [float(value) for value in done["clip_times_s"]]
        row["correct"] = all(
            row["label" if i == 0 else f"label_{head}"] in _list(known[column])
            for i, (head, column) in enumerate(columns.items())
        )
    return row


def _prediction(
    names: Sequence[str], scores: npt.NDArray[np.float32], suffix: str, topk: int
) -> dict[str, Any]:
    best = np.argsort(-scores, kind="stable")[:topk]
    return {
        f"label{suffix}": names[best[0]],
        f"score{suffix}": float(scores[best[0]]),
        f"topk_labels{suffix}": [names[i] for i in best],
        f"topk_scores{suffix}": [float(scores[i]) for i in best],
    }


def _list(labels: str | Sequence[str]) -> Sequence[str]:
    """The labels of a video, one or several."""
    return [labels] if isinstance(labels, str) else labels


def _text(labels: str | Sequence[str]) -> str:
    return ", ".join(_list(labels))

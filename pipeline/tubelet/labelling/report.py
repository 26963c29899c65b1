"""What a labelling job tells: the summary, and its run in MLflow."""

from __future__ import annotations

import csv
import dataclasses
import io
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.cells import defused
from tubelet.inference.bundle import find_link
from tubelet.labelling.config import LabelConfig
from tubelet.labelling.drift import expectation, total_variation
from tubelet.labelling.prepare import Prepared
from tubelet.plain_json import json_text
from tubelet.tracking import Tracker, run_name
from tubelet.tracking.off import NoTracker
from tubelet.video import Status, to_retry

if TYPE_CHECKING:
    from tubelet.inference.graph import Layout

_BINS = 20
_LOG_EVERY_S = 10.0


@dataclass
class Summary:
    """How it ended. ``ok`` and ``errors`` count what readers now see of the manifest, all runs together.

    ``to_retry``: errors among them of the store or the machine, which the same command tries again.

    ``million_more``: ``core_hours`` and ``gpu_hours`` that a million more of such videos would take.
    ``startup_s``: of ``seconds``, those before the first decoded row, when workers start and load the model.
    ``object_store_limit_bytes``: more than that the job did not keep in Ray's object store, however many
    objects there are.
    """

    objects: int
    ok: int
    errors: int
    already_done: int
    videos_per_s: float
    to_retry: int = 0
    labelled: int = 0
    seconds: float = 0.0
    startup_s: float = 0.0
    object_store_limit_bytes: int = 0
    out: str = ""
    models: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    review: str | None = None
    million_more: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        return dataclasses.asdict(self)


@dataclass
class Tally:
    """Figures of the rows that one model made in this run."""

    ok: int = 0
    errors: int = 0
    to_retry: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    scores: Any = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    score_sum: float = 0.0
    decode_s: float = 0.0
    predict_s: float = 0.0

    def add(self, rows: pa.Table) -> None:
        """Count ``rows``."""
        failed = pc.equal(rows["status"], Status.ERROR.value)
        errors = pc.sum(failed).as_py() or 0
        self.errors += errors
        self.ok += rows.num_rows - errors
        reasons = rows.select(["error_code", "error", "attempts"]).filter(pc.is_valid(rows["error_code"]))
        for code, reason, attempts in zip(*(column.to_pylist() for column in reasons.columns), strict=True):
            self.reasons[code] += 1
            self.examples.setdefault(code, reason or "")
            self.to_retry += to_retry(code, attempts)
        good = rows.filter(pc.invert(failed)) if errors else rows
        counts = pc.value_counts(good["label"].drop_null())
        self.labels.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))
        scores = good["score"].drop_null().to_numpy()
        self.scores += np.histogram(scores, bins=_BINS, range=(0, 1))[0]
        self.score_sum += float(scores.sum())
        for name in ("decode_s", "predict_s"):
            if name in rows.column_names:
                setattr(self, name, getattr(self, name) + float(rows[name].to_numpy().sum()))


class Report:
    """Counts rows as they come, and logs them in one MLflow run."""

    def __init__(self, tracker: Tracker, prepared: Prepared, layout: Layout | None) -> None:
        self._tracker, self._prepared, self._layout = tracker, prepared, layout
        self.tallies = [Tally() for _ in prepared.sinks]
        self.summary = summarise(prepared, Tally(), 0.0, tracker.run_id or None)
        self._started_s = self._logged_s = time.monotonic()
        self._first_s: float | None = None

    @classmethod
    def start(cls, config: LabelConfig, prepared: Prepared, layout: Layout | None) -> Report:
        """Begin the MLflow run; one video without a server that was named is not worth one."""
        if layout is None and config.tracking_uri is None and config.is_one_file():
            return cls(NoTracker(), prepared, layout)
        links = [find_link(bundle, config.tracking_uri) for bundle in prepared.models.bundles]
        params: dict[str, object] = {
            "source": config.source,
            "out": prepared.root.uri,
            "model": ", ".join(bundle.identity for bundle in prepared.models.bundles),
            "sampling": ", ".join(prepared.sampling),
            "objects": prepared.plan.objects,
            "to_do": prepared.plan.work,
        }
        if layout is not None:
            params |= {f"layout.{name}": value for name, value in dataclasses.asdict(layout).items()}
            params["layout.object_store_bytes"] = layout.object_store_bytes
        tags = {
            "tubelet.job": "label",
            "tubelet.manifest": prepared.manifest,
            "tubelet.manifest_fingerprint": prepared.fingerprint,
        }
        tracker = Tracker.start(
            config.tracking_uri,
            config.experiment,
            run_name(config.name, "label", storage.name_of(config.source)),
            tags=tags,
            params=params,
            wait_s=0,  # it was looked at before
            description=f"`tubelet label`\n\n{prepared.plan.work} of {prepared.plan.objects} objects of "
            f"{config.source}, with {params['model']}, into {prepared.root.uri}",
        )
        for link in links:
            tracker.link_model(link)
        tracker.log_dataset(prepared.manifest, prepared.fingerprint, "label", prepared.plan.objects)
        return cls(tracker, prepared, layout)

    @property
    def errors(self) -> int:
        """Failures of this run so far."""
        return self.tallies[0].errors

    def add(self, number: int, rows: pa.Table) -> None:
        """Count rows of model ``number``."""
        self.tallies[number].add(rows)
        if self._first_s is None and "decode_s" in rows.column_names:
            self._first_s = time.monotonic()
        if time.monotonic() - self._logged_s > _LOG_EVERY_S:
            self._log_progress()

    def stop(self, error: BaseException) -> None:
        """The job failed, or was interrupted."""
        self._log_progress(last=True)
        self._tracker.set_tags({"tubelet.error": str(error).strip()[:500]})
        killed = isinstance(error, (KeyboardInterrupt, SystemExit))
        self._tracker.finish("KILLED" if killed else "FAILED")

    def finish(self) -> None:
        """Everything is published: log what the job found, and end the run."""
        seconds = time.monotonic() - self._started_s
        self.summary = summarise(self._prepared, self.tallies[0], seconds, self._tracker.run_id or None)
        self.summary.object_store_limit_bytes = self._layout.object_store_bytes if self._layout else 0
        self.summary.startup_s = round((self._first_s or self._started_s) - self._started_s, 3)
        self._log_progress(last=True)
        costs = self._costs(seconds)
        self._tracker.log_metrics(costs)
        self.summary.million_more = million_more(costs)
        for number, tally in enumerate(self.tallies) if self._tracker.on else ():
            folder = "" if number == 0 else f"{self._prepared.models.names[number]}/"
            self._log_findings(number, tally, folder)
        self._tracker.log_text(json_text(self.summary.to_dict(), indent=1), "summary.json")

    def close(self) -> None:
        """The job is over, and all is well."""
        self._tracker.finish("FINISHED")

    def link_page(self, uri: str, page: bytes) -> None:
        """Keep the review page with the run, and say where it lies."""
        self.summary.review = uri
        self._tracker.set_tags({"tubelet.review_page": uri})
        self._tracker.log_text(page.decode(), "review.html")

    def _costs(self, seconds: float) -> dict[str, float]:
        """Core-seconds and GPU-seconds that a video took, by what the actors measured and what they hold."""
        tally = self.tallies[0]
        videos = max(tally.ok + tally.errors, 1)
        predict_s = sum(tally.predict_s for tally in self.tallies)
        on_gpu = bool(self._layout and self._layout.predictors)
        held = self._layout.predictors * self._layout.gpus * seconds if self._layout else 0.0
        return {
            "cost.core_s_per_video": (tally.decode_s + (0.0 if on_gpu else predict_s)) / videos,
            "cost.gpu_s_per_video": held / videos,
            "cost.decode_s_per_video": tally.decode_s / videos,
            "cost.predict_s_per_video": predict_s / videos,
            "cost.seconds": seconds,
        }

    def _log_findings(self, number: int, tally: Tally, folder: str) -> None:
        from tubelet.labelling import figures  # imports matplotlib

        reasons = [(code, count, tally.examples.get(code, "")) for code, count in tally.reasons.most_common()]
        expected = expectation(self._prepared.models.bundles[number])
        share = {label: count / max(tally.ok, 1) for label, count in tally.labels.items()}
        labels = [(label, count, share[label]) for label, count in tally.labels.most_common()]
        self._tracker.log_text(_csv(("error_code", "videos", "example"), reasons), f"{folder}errors.csv")
        self._tracker.log_text(_csv(("label", "videos", "share"), labels), f"{folder}labels.csv")
        self._tracker.log_figure(figures.labels(share, expected), f"{folder}figures/labels.png")
        self._tracker.log_figure(figures.scores(tally.scores), f"{folder}figures/scores.png")
        found = {"mean_confidence": tally.score_sum / max(tally.ok, 1)}
        if expected is not None and tally.ok:
            found["drift.label_share"] = total_variation(share, expected.share)
            if expected.confidence is not None:
                found["drift.confidence"] = found["mean_confidence"] - expected.confidence
        prefix = folder.replace("/", ".")
        self._tracker.log_metrics({prefix + name: value for name, value in found.items()})

    def _log_progress(self, *, last: bool = False) -> None:
        tally = self.tallies[0]
        self._logged_s = time.monotonic()
        age_s = self._logged_s - self._started_s
        done = tally.ok + tally.errors
        figures = {"labelled": done, "errors": tally.errors, "videos_per_s": done / max(age_s, 1e-9)}
        # A step that was logged is not logged again, and the last word must not be the one left out.
        self._tracker.log_metrics(figures, step=int(age_s) + last)


def million_more(costs: Mapping[str, float]) -> dict[str, float]:
    """Hours of cores and GPUs for a million videos that cost what these did (see ``Report._costs``)."""
    return {
        f"{kind}_hours": round(costs[f"cost.{kind}_s_per_video"] * 1_000_000 / 3600, 1)
        for kind in ("core", "gpu")
    }


def summarise(prepared: Prepared, tally: Tally, seconds: float, run_id: str | None) -> Summary:
    """What readers of the first model's output see of this manifest."""
    plan, made = prepared.plan, tally.ok + tally.errors
    models = prepared.models
    return Summary(
        objects=plan.objects,
        ok=plan.already_done[0] - plan.already_failed[0] + tally.ok,
        errors=plan.already_failed[0] + tally.errors,
        already_done=plan.already_done[0],
        to_retry=tally.to_retry,
        videos_per_s=round(made / seconds, 3) if seconds else 0.0,
        labelled=made,
        seconds=round(seconds, 3),
        out=prepared.root.uri,
        models={n: b.identity for n, b in zip(models.names, models.bundles, strict=True)},
        run_id=run_id,
    )


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([defused(cell) for cell in row] for row in rows)
    return text.getvalue()

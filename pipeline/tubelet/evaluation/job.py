"""The evaluation job: a model, a manifest, a split; its scores in a folder and in MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tubelet.corpus.fingerprint import fingerprint
from tubelet.corpus.manifest import read_manifest
from tubelet.corpus.versions import pinned_uri
from tubelet.evaluation.config import EvaluateConfig
from tubelet.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate_model, labelled_rows
from tubelet.evaluation.output import card_text, check_out, publish
from tubelet.inference.bundle import ModelBundle, find_link
from tubelet.inference.output import MakePage
from tubelet.progress import ProgressLine
from tubelet.storage import StorageOptions
from tubelet.tracking import Tracker, run_name


class EvaluateJob:
    """One run of ``tubelet evaluate``; the manifest and the model are loaded when it is made.

    Attributes:
        objects: videos to evaluate.

    Raises:
        UserError: no manifest, no model, a split without labelled videos, an output of something else.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self._options = StorageOptions(anonymous=config.anonymous)
        check_out(config.out, self._options.for_writing())
        self._source = pinned_uri(config.manifest, self._options)
        self._manifest = read_manifest(self._source, without=("keyframes_s",), options=self._options)
        self._bundle = ModelBundle.load(config.model, config.tracking_uri, self._options)
        rows = labelled_rows(self._manifest, self._bundle, config.split)
        self.objects, self._fingerprint = len(rows), fingerprint(rows)
        self._views = "x".join(map(str, config.views))

    def describe(self) -> str:
        """What :meth:`run` does."""
        model = f"{self._bundle.source} ({self._bundle.identity})"
        return f"evaluate {model} on {self.objects} videos of {self.config.split!r}, {self._views} views each"

    def run(
        self, start_ray: Callable[[], None], make_page: MakePage | None = None
    ) -> tuple[Evaluation, dict[str, Any]]:
        """Evaluate, and publish what came out; returns it and the job's summary.

        Args:
            start_ray: called before the first video.
            make_page: makes the page of the worst mistakes.

        Raises:
            UserError: too many videos failed.
        """
        Tracker.check(self.config.tracking_uri, self.config.experiment)
        start_ray()
        with self._start_tracker() as tracker:
            started_s = time.monotonic()
            evaluation = self._evaluate()
            speed = round(self.objects / (time.monotonic() - started_s), 3)
            summary = {
                **evaluation.summary(),
                "videos_per_s": speed,
                "model": self._bundle.identity,
            }
            out = self.config.out
            publish(
                evaluation,
                summary,
                self._bundle,
                tracker,
                out=out,
                options=self._options.for_writing(),
                make_page=make_page,
            )
            title = f"Evaluation: {self.config.split}, {self._views} views"
            tracker.describe_version(self._link, title, card_text(evaluation, self.objects))
        return evaluation, {**summary, "out": out, "run_id": tracker.run_id}

    def _evaluate(self) -> Evaluation:
        config, errors = self.config, 0
        how = EvaluationConfig(
            views=config.views,
            batch=config.batch,
            workers=config.workers,
            seed=config.seed,
            ablation=config.ablate,
            max_error_rate=config.max_error_rate,
            storage=self._options,
            limits=config.limits.limits(),
        )
        with ProgressLine("evaluate", self.objects, "videos") as progress:

            def advance(videos: int, failed: int) -> None:
                nonlocal errors
                errors += failed
                progress.advance(videos, errors=errors)

            return evaluate_model(self._bundle, self._manifest, config.split, how, advance)

    def _start_tracker(self) -> Tracker:
        config, bundle = self.config, self._bundle
        tags = {
            "tubelet.job": "evaluate",
            "tubelet.manifest": self._source,
            "tubelet.data_fingerprint": self._fingerprint,
        }
        params = {
            "model": bundle.source,
            "split": config.split,
            "views": self._views,
            "ablate": config.ablate,
            "sampling": bundle.clip.sampling,
        }
        tracker = Tracker.start(
            config.tracking_uri,
            config.experiment,
            run_name(config.name, "evaluate", config.split),
            tags=tags,
            params=params,
            description=f"`tubelet evaluate`\n\n{self.describe()}",
        )
        self._link = find_link(bundle, tracker.uri)
        tracker.link_model(self._link)
        tracker.log_dataset(self._source, self._fingerprint, config.split, self.objects)
        return tracker

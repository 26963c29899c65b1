"""``tubelet evaluate --learning-curve``: would more labels help, asked of the labels that there are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.selection import read_labelled
from tubelet.corpus.versions import pinned_uri
from tubelet.evaluation.config import EvaluateConfig
from tubelet.evaluation.evaluate import label_columns
from tubelet.inference.bundle import ModelBundle, find_link
from tubelet.inference.features import FeatureSpec
from tubelet.plain_json import json_text
from tubelet.storage import StorageOptions
from tubelet.tracking import Tracker, run_name
from tubelet.training.examples import NOT_NEEDED, Examples, load_examples
from tubelet.training.few.curve import Curve, learning_curve
from tubelet.training.few.folds import make_folds
from tubelet.training.few.given import Wanted, given_features, videos_of
from tubelet.training.few.linear import pooled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, FIGURE = "learning_curve.json", "learning_curve.png"
# Of a head that is not linear, or whose strength is not known.
STRENGTH = 0.01
_TOKENS = {"token": "class", "gap": "patch", "token_gap": "both"}
_FOLDS, _REPEATS = 5, 2


class CurveJob:
    """One run of it; manifest and model are loaded when it is made.

    Raises:
        UserError: no manifest, no model, one that sees several frames at once, no labels to train on.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self._options = StorageOptions(anonymous=config.anonymous)
        written = self._options.for_writing()
        taken = config.out is not None and storage.exists(config.out, written)
        if taken and storage.stat(storage.join(config.out or "", TABLE), written) is None:
            raise UserError(f"{config.out} exists and is no learning curve: choose another --out")
        self._bundle = ModelBundle.load(config.model, config.tracking_uri, self._options)
        self._spec = FeatureSpec.of(self._bundle.model, self._bundle.clip)
        self._manifest = pinned_uri(config.manifest, self._options)
        self._columns = label_columns(self._bundle)
        table = read_labelled(
            self._manifest, self._columns.values(), without=NOT_NEEDED, options=self._options
        )
        self._examples: Examples = load_examples(
            table, self._columns, multilabel=self._bundle.multilabel, labels=self._bundle.labels
        )
        if not len(self._examples):
            raise UserError("no training video has a label that the model knows")
        self.objects = len(self._examples)

    def describe(self) -> str:
        """What :meth:`run` does."""
        return (
            f"learning curve of {self._bundle.source}: heads on frozen features, {self.objects} videos "
            "of 'train', scored on groups that they were not fitted on"
        )

    def run(self, start_ray: Callable[[], None]) -> tuple[Curve, dict[str, Any]]:
        """Fit and publish; returns the curve and the job's summary.

        Raises:
            UserError: too many videos failed.
        """
        config, bundle = self.config, self._bundle
        wanted = Wanted(
            self._manifest,
            config.features,
            self._options,
            tuple(self._columns.values()),
            ("train",),
            config.limits,
        )
        wanted.compute(bundle, self._spec, start_ray, config.workers, config.max_error_rate)
        features = wanted.read(self._spec)
        given = given_features(features, self._examples, multilabel=bundle.multilabel)
        folds = make_folds(
            given.task, videos_of(given.about), folds=_FOLDS, repeats=_REPEATS, seed=config.seed
        )
        model = bundle.model.config
        pool = model.temporal_pool if model.temporal_pool != "attention" else "mean"
        x = pooled(given.frames, _TOKENS.get(str(model.classifier), "class"), pool)
        strength = (bundle.metadata.get("selection") or {}).get("strength") or STRENGTH
        curve = learning_curve(x, given.task, folds, strength, seed=config.seed)
        summary = {
            "objects": self.objects,
            "ok": len(given.task),
            "errors": given.lost,
            "curve": curve.rows(),
            f"twice_{curve.measure}": curve.doubled,
            f"twice_{curve.measure}_interval": curve.doubled_interval,
            "model": bundle.identity,
            "warnings": folds.notes,
        }
        return curve, {**summary, "run_id": self._publish(curve, summary), "out": config.out}

    def _publish(self, curve: Curve, summary: dict[str, Any]) -> str:
        config, bundle = self.config, self._bundle
        tags = {"tubelet.job": "learning-curve", "tubelet.manifest": self._manifest}
        params = {"model": bundle.source, "sampling": bundle.clip.sampling}
        with Tracker.start(
            config.tracking_uri,
            config.experiment,
            run_name(config.name, "learning curve"),
            tags=tags,
            params=params,
            description=f"`tubelet evaluate --learning-curve`\n\n{self.describe()}",
        ) as tracker:
            tracker.link_model(find_link(bundle, tracker.uri))
            tracker.log_table(curve.rows(), TABLE)
            with tempfile.TemporaryDirectory(prefix="tubelet-curve-") as name:
                folder = Path(name)
                figure_of(curve).savefig(folder / FIGURE, dpi=120)
                (folder / TABLE).write_text(json_text(summary, indent=1), "utf-8")
                tracker.log_file(folder / FIGURE)
                if config.out is not None:
                    storage.upload_dir(folder, config.out, self._options.for_writing())
            return tracker.run_id


def lines(curve: Curve) -> Iterator[str]:
    """The curve for a terminal."""
    yield f"{'labels per class':>16} {'clips':>7} {curve.measure:>7}  95% of {curve.points[0].draws} draws"
    for point in curve.points:
        low, high = point.interval
        yield f"{point.labels:16} {point.clips:7.0f} {point.mean:7.3f}  {low:.3f} to {high:.3f}"
    if curve.law is None or curve.doubled is None:
        yield "too few points for a guess at what twice the labels would bring"
        return
    within = ""
    if curve.doubled_interval is not None:
        within = f" ({curve.doubled_interval[0]:.3f} to {curve.doubled_interval[1]:.3f})"
    limit, amplitude, exponent = curve.law
    yield (
        f"twice the labels: about {curve.doubled:.3f}{within}, a guess by the fitted power law "
        f"{limit:.3f} - {amplitude:.3f} * clips^-{exponent:.2f}"
    )


def figure_of(curve: Curve) -> Figure:
    """Score by clips fitted on, with the fitted law up to twice the labels."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    x = [point.clips for point in curve.points]
    y = [point.mean for point in curve.points]
    ends = np.array([point.interval for point in curve.points])
    axes.errorbar(x, y, np.abs(ends.T - y), marker="o", capsize=3, label="measured, 95% of draws")
    if curve.law is not None:
        limit, amplitude, exponent = curve.law
        grid = np.geomspace(x[0], 2 * x[-1])
        axes.plot(grid, limit - amplitude * grid**-exponent, "--", label="fitted power law")
    axes.set(xscale="log", xlabel="labelled clips fitted on", ylabel=f"{curve.measure}, cross-validated")
    axes.set_xticks(x, [f"{clips:.0f}" for clips in x])
    axes.minorticks_off()
    axes.legend()
    return figure

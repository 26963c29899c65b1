"""``tubelet demo``: the whole job on a corpus made here, or on a person's own videos."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tubelet import storage
from tubelet.config import Option, Settings, UserError

from tubelet_jobs.common import connect_ray, print_summary, say
from tubelet_jobs.options import command_line

S = TypeVar("S", bound=Settings)

BUCKET = "tubelet-demo"
# What an earlier demo left and a new one replaces. The MLflow runs stay, for comparison.
_OURS = ("corpus", "s3", "manifest", "model", "evaluation", "predictions", "review.html")
_MARKER = ".tubelet-demo"
# A fifth for the test: an interval around 0.9 from a tenth of the corpus would be a tenth wide itself.
_SPLIT = "train=0.7,val=0.1,test=0.2"
# Videos of real things, with the recipe that is made for the moving shapes: the whole of each, and larger.
_REAL_VIDEOS = ("stride=null", "size=64", "short_side=73")
# A person's own account must not reach the embedded server, nor a proxy stand before it.
_FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")
_COLUMNS = ("job", "seconds", "figures")


class DemoConfig(Settings):
    """What the demo runs on; ``videos=None`` is the corpus of moving shapes, ``per_class`` of each motion."""

    videos: Annotated[str | None, Option(metavar="DIR")] = None
    """Your own: class folders, or a manifest."""
    labels: Annotated[str | None, Option(metavar="FILE|folders")] = None
    """Labels of --videos."""
    split: Annotated[str | None, Option(metavar="SPEC")] = None
    """Splits of --videos."""
    out: Annotated[str, Option()] = "demo-out"
    """Local folder for everything the demo makes."""
    recipe: Annotated[str, Option(metavar="NAME|FILE")] = "tiny"
    """Name of a recipe, or a YAML file."""
    overrides: Annotated[tuple[str, ...], Option(argument=True, metavar="key=value")] = ()
    """Settings of the recipe, such as max_steps=200."""
    tracking_uri: Annotated[str | None, Option()] = None
    """MLflow server (default: a database in --out)."""
    views: str = "4x1"
    per_class: int = 60
    inbox: int = 24
    broken: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Places:
    """Where the jobs of one demo read and write."""

    source: str
    labels: str | None
    split: str | None
    inbox: str | None  # None: label what was indexed
    manifest: str
    model: str
    predictions: str


def command(config: DemoConfig) -> None:
    """Index, train, evaluate, label and review, one after the other, on this machine.

    Without --videos: small H.264 files of moving shapes, whose class is the motion alone, on an embedded S3
    server. With --videos: the same jobs on your own. Running it again starts afresh; MLflow keeps the runs.

    Example: tubelet demo

    Example: tubelet demo --videos ~/gestures --split train=0.7,test=0.3 max_steps=300
    """
    print_summary(run_demo(config))


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run the demo and return its summary.

    Raises:
        UserError: the options don't fit together, ``out`` is somebody else's folder, or a job refused.
    """
    from tubelet.storage.lock import OutputLock

    if config.videos is None and (config.labels or config.split):
        raise UserError("--labels and --split belong to --videos DIR: name your folder of videos too")
    out = Path(config.out).resolve()
    _claim(out)
    with OutputLock(out, job="tubelet demo"):
        _clear(out)
        if config.videos is None:
            with embedded_s3(out / "s3"):
                return _run_on_cluster(config, out, shapes(config, out, f"s3://{BUCKET}"))
        return _run_on_cluster(config, out, own_videos(config, out))


def shapes(config: DemoConfig, out: Path, base: str) -> Places:
    """Write the corpus of moving shapes to ``base`` (any URI) by way of ``out``/corpus."""
    from tubelet_jobs.demo_corpus import write_corpus

    started_s = time.monotonic()
    local = out / "corpus"
    corpus = write_corpus(
        local, per_class=config.per_class, inbox=config.inbox, broken=config.broken, seed=config.seed
    )
    storage.upload_dir(local, base)
    count = len(corpus.labelled) + len(corpus.inbox) + len(corpus.broken)
    say(f"wrote {count} small videos to {base} in {time.monotonic() - started_s:.0f} s")
    return Places(
        source=storage.join(base, "labelled"),
        labels=storage.join(base, "labels.csv"),
        split=_SPLIT,
        inbox=storage.join(base, "inbox"),
        manifest=storage.join(base, "manifest"),
        model=storage.join(base, "model"),
        predictions=storage.join(base, "predictions"),
    )


def own_videos(config: DemoConfig, out: Path) -> Places:
    """A person's own videos: class folders, files with a table of labels, or a manifest."""
    from tubelet.corpus.manifest import is_manifest

    source = storage.normalise_uri(config.videos or "")
    ready = is_manifest(source)
    if ready and (config.labels or config.split):
        raise UserError(
            f"{source} is a manifest and has its labels and splits: leave --labels and --split out"
        )
    return Places(
        source=source,
        labels=None if ready else config.labels or "folders",
        split=config.split,
        inbox=None,
        manifest=source if ready else str(out / "manifest"),
        model=str(out / "model"),
        predictions=str(out / "predictions"),
    )


def run_jobs(config: DemoConfig, places: Places, out: Path) -> list[Step]:
    """Run the jobs one after the other, each as the command line would; Ray is up already."""
    from tubelet_jobs import evaluate, index, label, review, train

    tracking_uri = config.tracking_uri or f"sqlite:///{out / 'mlflow.db'}"
    real = config.videos is not None and config.recipe == DemoConfig().recipe
    overrides = (*(_REAL_VIDEOS if real else ()), *config.overrides)
    steps = Steps()
    if places.manifest != places.source:
        indexing = index.IndexOptions(
            src=places.source,
            out=places.manifest,
            labels=(places.labels,) if places.labels else (),
            split=places.split,
        )
        steps.run(index.command, indexing)
    training = train.TrainOptions(
        manifest=places.manifest,
        out=places.model,
        recipe=config.recipe,
        overrides=overrides,
        tracking_uri=tracking_uri,
    )
    steps.run(train.command, training)
    evaluation = evaluate.EvaluateOptions.model_validate(
        {
            "model": places.model,
            "manifest": places.manifest,
            "views": config.views,
            "out": str(out / "evaluation"),
            "tracking_uri": tracking_uri,
        }
    )
    steps.run(evaluate.command, evaluation)
    labelling = label.LabelOptions(
        source=places.inbox or places.manifest,
        models=(places.model,),
        out=places.predictions,
        tracking_uri=tracking_uri,
    )
    steps.run(label.command, labelling)
    page = review.ReviewOptions(predictions=places.predictions, out=str(out / "review.html"))
    steps.run(review.command, page)
    return steps.done


@dataclass(frozen=True)
class Step:
    """One job of the demo: its name, what it took, and its JSON summary."""

    job: str
    seconds: float
    summary: dict[str, Any]


class Steps:
    """Runs jobs and keeps what they tell."""

    def __init__(self) -> None:
        self.done: list[Step] = []

    def run(self, job: Callable[[S], None], settings: S) -> None:
        """Call ``job`` with its command line shown, and take the summary it prints."""
        name = job.__module__.rpartition(".")[2]
        say(f"\n$ {command_line(name, settings)}")
        started_s = time.monotonic()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            job(settings)
        # Ray prints messages of its own at any time.
        summary = json.loads([line for line in printed.getvalue().splitlines() if line.startswith("{")][-1])
        self.done.append(Step(name, round(time.monotonic() - started_s, 1), summary))


def _run_on_cluster(config: DemoConfig, out: Path, places: Places) -> dict[str, Any]:
    import ray

    started_s = time.monotonic()
    ours = not ray.is_initialized()
    # Logical CPUs: fewer than four cannot hold ranks, planning and decoding at once.
    connect_ray("local", num_cpus=max(4, os.cpu_count() or 1))
    try:
        steps = run_jobs(config, places, out)
    finally:
        if ours:
            ray.shutdown()
    _show(steps, config, out)
    return {
        "top1": steps_summary(steps, "evaluate").get("top1"),
        "seconds": round(time.monotonic() - started_s, 1),
        "page": str(out / "review.html"),
        "jobs": {step.job: {"seconds": step.seconds, **step.summary} for step in steps},
    }


def steps_summary(steps: Sequence[Step], job: str) -> Mapping[str, Any]:
    """The JSON summary of ``job``."""
    return next(step.summary for step in steps if step.job == job)


@contextlib.contextmanager
def embedded_s3(root: Path) -> Iterator[None]:
    """An S3 server under ``root``, to which this process and what it starts are pointed."""
    from tubelet.storage.local_s3 import LocalS3

    before = dict(os.environ)
    for name in _FOREIGN:
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [before.get(name), "127.0.0.1,localhost"]))
    try:
        with LocalS3(root, (BUCKET,)) as server:
            os.environ.update(server.env)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _claim(out: Path) -> None:
    """Take ``out``: it must be new, empty, or of an earlier demo, because files in it are replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out")
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise UserError(f"{out} holds other things than a demo: name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()


def _clear(out: Path) -> None:
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _show(steps: Sequence[Step], config: DemoConfig, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*_COLUMNS)
    for step in steps:
        figures = ", ".join(_figures(step.summary))
        table.add_row(step.job, f"{step.seconds:.1f}", figures)
    console = Console(stderr=True)
    console.print(table)
    uri = config.tracking_uri or f"sqlite:///{out / 'mlflow.db'}"
    say(f"\nThe page: {(out / 'review.html').as_uri()}")
    say(f"The runs: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}")


_KEY_FIGURES = ("objects", "errors", "steps", "loss", "clips_per_s", "top1", "top5", "videos_per_s", "shown")


def _figures(summary: Mapping[str, Any]) -> Iterator[str]:
    for name in _KEY_FIGURES:
        value = summary.get(name)
        if value is not None:
            yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"

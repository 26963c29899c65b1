"""``tubelet demo``: the whole job on a corpus made here, or on a person's own videos."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from tubelet import storage
from tubelet.config import Option, Settings, UserError

from tubelet_jobs.common import connect_ray, print_summary, say
from tubelet_jobs.demo_files import TRUTH, WORST, leave_as_files, write_truth
from tubelet_jobs.demo_loop import check_loop, run_loop
from tubelet_jobs.demo_steps import Places, Step, Steps, show_table, steps_summary

BUCKET = "tubelet-demo"
# What an earlier demo left and a new one replaces. The MLflow runs stay, for comparison.
_OURS = (
    *("corpus", "s3", "manifest", "model", "evaluation", "predictions", "loop", "one-video"),
    *("review.html", WORST, TRUTH),
)
_MARKER = ".tubelet-demo"
# A fifth for the test: an interval around 0.9 from a tenth of the corpus would be a tenth wide itself.
_SPLIT = "train=0.7,val=0.1,test=0.2"
# Videos of real things, with the recipe that is made for the moving shapes: the whole of each, and larger.
_REAL_VIDEOS = ("stride=null", "size=64", "short_side=73")
# A person's own account must not reach the embedded server, nor a proxy stand before it.
_FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")
# Of the registered model.
NAME = "demo"


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
    loop: Annotated[bool, Option()] = False
    """Go on with what a demo has left in --out: learn from its corrections, and compare."""
    views: str = "4x1"
    per_class: int = 60
    inbox: int = 24
    broken: int = 4
    seed: int = 0


def command(config: DemoConfig) -> None:
    """Index, train, evaluate, label and review, one after the other, on this machine.

    Without --videos: small H.264 files of moving shapes, whose class is the motion alone, on an embedded S3
    server. With --videos: the same jobs on your own. Running it again starts afresh; MLflow keeps the runs.

    --loop goes on with what an earlier demo has left: it takes the corrections made on its served page
    (without any, the truth of the least certain rows stands in), trains on them, and shows what got better.

    Example: tubelet demo

    Example: tubelet demo --videos ~/gestures --split train=0.7,test=0.3 max_steps=300
    """
    print_summary(run_loop_of(config) if config.loop else run_demo(config))


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
                summary = _run_on_cluster(config, out, shapes(config, out, f"s3://{BUCKET}"))
            shutil.rmtree(out / "s3", ignore_errors=True)  # what it held lies beside it as plain files
            return summary
        return _run_on_cluster(config, out, own_videos(config, out))


def run_loop_of(config: DemoConfig) -> dict[str, Any]:
    """Run the loop on what a demo has left in ``out``, and return its summary.

    Raises:
        UserError: there is nothing to go on with, or a job refused.
    """
    import ray
    from tubelet.storage.lock import OutputLock

    if config.videos is not None:
        raise UserError("--loop goes on with the demo's own videos: leave --videos out")
    out = Path(config.out).resolve()
    check_loop(out)
    with OutputLock(out, job="tubelet demo"):
        ours = not ray.is_initialized()
        connect_ray("local", num_cpus=max(4, os.cpu_count() or 1))
        try:
            steps, summary = run_loop(out, config.recipe, config.overrides, tracking_uri_of(config, out))
        finally:
            if ours:
                ray.shutdown()
    show_table(steps)
    say(f"\nWhat changed: {Path(summary['page']).as_uri()}")
    return summary


def tracking_uri_of(config: DemoConfig, out: Path) -> str:
    """The MLflow server, or the database in ``out``."""
    return config.tracking_uri or f"sqlite:///{out / 'mlflow.db'}"


def shapes(config: DemoConfig, out: Path, base: str) -> Places:
    """Write the corpus of moving shapes to ``base`` (any URI) by way of ``out``/corpus."""
    from tubelet_jobs.demo_corpus import write_corpus

    started_s = time.monotonic()
    local = out / "corpus"
    corpus = write_corpus(
        local, per_class=config.per_class, inbox=config.inbox, broken=config.broken, seed=config.seed
    )
    storage.upload_dir(local, base)
    write_truth(out, corpus.inbox)
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

    tracking_uri = tracking_uri_of(config, out)
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
        name=NAME,
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
    leave_as_files(places, out)
    page = review.ReviewOptions(predictions=str(out / "predictions"), out=str(out / "review.html"))
    steps.run(review.command, page)
    return steps.done


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
    show_table(steps)
    say(f"\nThe page: {(out / 'review.html').as_uri()}")
    if (out / WORST).is_file():
        say(f"The worst mistakes: {(out / WORST).as_uri()}")
    programs = Path(sys.executable).parent
    say(f"The runs: {programs / 'mlflow'} ui --backend-store-uri {tracking_uri_of(config, out)}")
    say("To try next:")
    for words in next_commands(config, out):
        say(f"  {shlex.join([str(programs / 'tubelet'), *words])}")


def next_commands(config: DemoConfig, out: Path) -> Iterator[list[str]]:
    """What works on what the demo has left: label one video, look and correct, and learn from that."""
    tracking = ["--tracking-uri", tracking_uri_of(config, out)]
    video = _a_labelled_video(out / "predictions")
    if video:
        model = ["--model", str(out / "model"), "--out", str(out / "one-video")]
        yield ["label", video, *model, *tracking]
    yield ["review", str(out / "predictions"), "--serve"]
    if config.videos is None:
        server = [] if config.tracking_uri is None else tracking
        yield ["demo", "--loop", "--out", str(out), *server]


def _a_labelled_video(predictions: Path) -> str | None:
    from tubelet.inference.sink import part_name, part_numbers

    for number in part_numbers(sorted(path.name for path in predictions.iterdir())):
        rows = pq.read_table(predictions / part_name(number), columns=["uri", "status"]).to_pylist()
        for row in rows:
            if row["status"] == "ok":
                return str(row["uri"])
    return None

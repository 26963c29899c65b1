"""The review page: one self-contained HTML file with every video as a strip of frames."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tubelet import storage
from tubelet.config import Option, Settings, UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.sink import part_name, part_numbers
from tubelet.inference.strips import Strip, StripMaker, StripRequest
from tubelet.plain_json import plain
from tubelet.progress import ProgressLine
from tubelet.storage import StorageOptions
from tubelet.video import Status

_MAX_ERRORS = 5000
_BINS = 20
_HEAVY = ("embedding", "scores")


class ReviewConfig(Settings):
    """What the page shows. Errors need no pictures and are all listed, up to 5,000."""

    predictions: Annotated[str, Option(argument=True, metavar="PREDICTIONS")]
    """The --out of `tubelet label`."""
    out: Annotated[str, Option()]
    """The page, one HTML file."""
    limit: Annotated[int, Option(), Field(ge=0)] = 1000
    """Most videos with pictures (about 20 kB each)."""
    frames: Annotated[int, Option(), Field(ge=1, le=32)] = 8
    """Frames of a strip."""
    height: Annotated[int, Option(), Field(ge=32, le=480)] = 96
    """Height of a frame in pixels."""
    workers: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that decode."""
    anonymous: Annotated[bool, Option()] = False
    """Read public buckets without credentials."""


@dataclass(frozen=True)
class ReviewSummary:
    """What went onto the page."""

    out: str
    videos: int
    shown: int
    errors: int
    without_frames: int
    size_bytes: int


def review(config: ReviewConfig) -> ReviewSummary:
    """Make the page of an output of ``tubelet label``.

    Raises:
        UserError: there are no predictions, or the page cannot be written.
    """
    options = StorageOptions(anonymous=config.anonymous)
    survey = Survey(config.limit)
    for part in read_predictions(config.predictions, options):
        survey.add(part)
    videos = list(_videos(survey.shown, config, options))
    errors = [_error(row) for row in survey.errors]
    page = render(config, survey, videos, errors).encode()
    storage.write_bytes(config.out, page, options)
    return ReviewSummary(
        out=storage.normalise_uri(config.out),
        videos=survey.good,
        shown=len(videos),
        errors=survey.failed,
        without_frames=sum(video["strip"] is None for video in videos),
        size_bytes=len(page),
    )


class Survey:
    """What the page says of an output, gathered part by part: no part stays in memory.

    Attributes:
        good, failed: rows so far.
        shown: the rows to show. Keys are hashes: the first of them in order are a random sample, the same
            one each time.
        errors: the failed rows to list.
        labels: labels seen.
        histogram, score_sum, scores, unsure: of the confidences.
        origin: model and sampling.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.good = self.failed = self.scores = self.unsure = 0
        self.score_sum = 0.0
        self.histogram = np.zeros(_BINS, np.int64)
        self.labels: set[str] = set()
        self.shown: pa.Table | None = None
        self.errors: list[dict[str, Any]] = []
        self.origin: list[str] = []

    def add(self, rows: pa.Table) -> None:
        """Count the rows of one part."""
        if rows.num_rows and not self.origin:
            self.origin = [str(rows[name][0].as_py()) for name in ("model", "sampling")]
        is_error = pc.equal(rows["status"], Status.ERROR.value)
        failed, good = rows.filter(is_error), rows.filter(pc.invert(is_error))
        self.failed += failed.num_rows
        self.good += good.num_rows
        self.errors += failed.slice(0, _MAX_ERRORS - len(self.errors)).to_pylist()
        self.labels |= set(pc.unique(good["label"]).to_pylist())
        scores = good["score"].drop_null().to_numpy()
        scores = scores[np.isfinite(scores)]
        self.histogram += np.histogram(scores, bins=_BINS, range=(0, 1))[0]
        self.score_sum += float(scores.sum(dtype=np.float64))
        self.scores += len(scores)
        self.unsure += int((scores < 0.5).sum())
        kept = good if self.shown is None else pa.concat_tables([self.shown, good])
        order = pc.sort_indices(kept, sort_keys=[("key", "ascending"), ("window", "ascending")])
        # Taken, and not cut out of a sorted copy: a slice would hold all of it.
        self.shown = kept.take(order[: self._limit]).combine_chunks()


def read_predictions(uri: str, options: StorageOptions) -> Iterator[pa.Table]:
    """The parts at the root of an output, without the columns that are large.

    Raises:
        UserError: there are none.
    """
    files = OutputFiles(uri, options)
    names = [part_name(number) for number in part_numbers(files.names())]
    if not names:
        raise UserError(f"no predictions at {files.uri}: give the --out of `tubelet label`")
    schema = files.read_schema(names[0])
    columns = [name for name in schema.names if not name.startswith(_HEAVY)]
    for name in names:
        yield files.read_table(name, columns)


def _videos(rows: pa.Table, config: ReviewConfig, options: StorageOptions) -> Iterator[dict[str, Any]]:
    times = rows["clip_times_s"].to_pylist()
    uris, etags = rows["uri"].to_pylist(), rows["etag"].to_pylist()
    requests = [StripRequest(u, e, tuple(t or ())) for u, e, t in zip(uris, etags, times, strict=True)]
    prefix = _common_folder(uris)
    with (
        StripMaker(options, frames=config.frames, height=config.height, workers=config.workers) as maker,
        ProgressLine("review", rows.num_rows, "videos") as progress,
    ):
        for row, strip in zip(rows.to_pylist(), maker.strips(requests), strict=True):
            progress.advance()
            yield _video(row, strip, prefix)


def _video(row: dict[str, Any], strip: Strip, prefix: str) -> dict[str, Any]:
    extra = [name.removeprefix("label_") for name in row if name.startswith("label_")]
    return {
        "key": row["key"],
        "window": row["window"],
        "uri": row["uri"],
        "path": row["uri"].removeprefix(prefix),
        "label": row["label"],
        "score": row["score"],
        "top": [list(pair) for pair in zip(row["topk_labels"] or (), row["topk_scores"] or (), strict=True)][
            :5
        ],
        "start": row["start_s"],
        "end": row["end_s"],
        "partial": row["error"] if row["error_code"] else None,
        "heads": {head: _said(row[f"label_{head}"], row[f"score_{head}"]) for head in extra},
        "strip": strip.jpeg,
        "size": strip.size,
        "missing": strip.missing,
    }


def _said(label: str | None, score: float | None) -> str:
    return f"{label} {100 * score:.0f} %" if score is not None and math.isfinite(score) else str(label)


def _error(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": row["key"],
        "window": row["window"],
        "uri": row["uri"],
        "path": row["uri"],
        "code": row["error_code"] or "error",
        "reason": row["error"] or "",
    }


def _common_folder(uris: Sequence[str]) -> str:
    """The folder that all URIs share, which the page need not repeat."""
    folders = [uri.rpartition("/")[0] for uri in uris]
    first, last = min(folders, default="").split("/"), max(folders, default="").split("/")
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(part + "/" for part, _ in shared)


def render(
    config: ReviewConfig, survey: Survey, videos: list[dict[str, Any]], errors: list[dict[str, Any]]
) -> str:
    """The page's HTML. All text is escaped, and the page forbids itself anything from outside."""
    labels = Counter(video["label"] for video in videos)
    codes = Counter(error["code"] for error in errors)
    data = {
        "videos": videos,
        "errors": errors,
        "label_counts": labels.most_common(),
        "code_counts": codes.most_common(),
        "histogram": survey.histogram.tolist(),
    }
    loader = jinja2.PackageLoader("tubelet.review", ".")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html.j2")
    return template.render(
        title=storage.normalise_uri(config.predictions).rstrip("/").rpartition("/")[2] or "predictions",
        origin=" · ".join([storage.normalise_uri(config.predictions), *survey.origin]),
        tiles=_tiles(survey),
        notes=list(_notes(survey.good, len(videos), survey.failed)),
        data=plain(data),
    )


def _tiles(survey: Survey) -> list[tuple[str, str]]:
    rows = survey.good + survey.failed
    return [
        ("Rows", f"{rows:,}"),
        ("Labelled", f"{survey.good:,}"),
        ("Errors", f"{survey.failed:,} ({100 * survey.failed / max(rows, 1):.1f} %)"),
        ("Labels seen", str(len(survey.labels))),
        ("Mean confidence", f"{100 * survey.score_sum / survey.scores:.1f} %" if survey.scores else "none"),
        ("Below 50 %", f"{survey.unsure:,}"),
    ]


def _notes(good: int, shown: int, failed: int) -> Iterator[str]:
    if shown < good:
        yield (
            f"Shown are {shown:,} of {good:,} labelled videos, picked at random; the figures are of all. "
            "Set --limit to show more."
        )
    if failed > _MAX_ERRORS:
        yield f"Listed are {_MAX_ERRORS:,} of {failed:,} errors."

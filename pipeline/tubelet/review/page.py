"""The review page: every video as a strip of frames, to look at, to search and to correct."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from tubelet import storage
from tubelet.inference.strips import Strip, StripMaker, StripRequest
from tubelet.progress import ProgressLine
from tubelet.review.compare import Comparison, compare, read_answers
from tubelet.review.config import Queue, ReviewConfig, lifetime_s
from tubelet.review.likeness import map_points, nearest
from tubelet.review.queues import choose, places_of, read_columns, unit_embeddings
from tubelet.review.rows import Truth, error_row, in_first_order, page_rows, read_truth
from tubelet.review.sheets import SheetWriter
from tubelet.review.survey import MAX_ERRORS, Place, Survey, read_predictions
from tubelet.review.template import render
from tubelet.storage import StorageOptions
from tubelet.tracking.names import user

# A page of more rows, or of more bytes, has its pictures in files beside it; MLflow shows one file alone.
ALONE_ROWS = 500
ALONE_BYTES = 10_000_000


@dataclass(frozen=True)
class ReviewSummary:
    """What went onto the page.

    Attributes:
        alone: the page as one file: itself, or one of the first rows where its pictures lie beside it.
    """

    out: str
    videos: int
    shown: int
    errors: int
    without_frames: int
    size_bytes: int
    alone: str
    compared: dict[str, Any] | None = None


def review(config: ReviewConfig) -> ReviewSummary:
    """Make the page of an output of ``tubelet label``.

    Raises:
        UserError: there are no predictions, or the page cannot be written.
    """
    return PageMaker(config, config.page).make()


class PageMaker:
    """Makes one page.

    Args:
        out: URI of the page.
        served: it is served by :mod:`tubelet.review.server`, which plays the videos and keeps corrections.

    Attributes:
        rows: what the page shows, once it is made.
        truth: what the manifest says of them.
        prefix: what of a URI the page does not repeat in each path.
    """

    def __init__(self, config: ReviewConfig, out: str, *, served: bool = False) -> None:
        self.config, self._out, self._served = config, out, served
        self.truth: Truth = {}
        self.prefix = ""
        self._queue = Queue.parse(config.queue) if config.queue else None
        self._why: dict[Place, str] = {}
        self._comparison: Comparison | None = None
        self._survey = Survey(config.limit)
        self.rows: list[dict[str, Any]] = []

    def make(self) -> ReviewSummary:
        """Read, decode, write.

        Raises:
            UserError: as :func:`review`.
        """
        config = self.config
        if self._queue is not None:
            self._why = choose(self._queue, config.predictions, config.other, config.predictions_options)
            self._survey = Survey(len(self._why), self._why)
        survey = self._survey
        for part in read_predictions(config.predictions, config.predictions_options):
            survey.add(part)
        assert survey.shown is not None
        table = in_first_order(survey.shown) if self._queue is None else self._in_order_of_queue(survey.shown)
        self.truth = read_truth(config.manifest, config.storage_options) if config.manifest else {}
        self.rows = page_rows(table, self.truth, whole_uris=config.whole_uris)
        self.prefix = self.rows[0]["uri"].removesuffix(self.rows[0]["path"]) if self.rows else ""
        self._add_reasons()
        self._add_likeness(table)
        if config.other:
            self._compare(config.other, self.truth)
        with strips_of(table, config) as strips:
            page, alone = self._write(strips)
        return ReviewSummary(
            out=self._out,
            videos=survey.good,
            shown=len(self.rows),
            errors=survey.failed,
            without_frames=sum("missing" in row for row in self.rows),
            size_bytes=len(page),
            alone=alone,
            compared=self._comparison.to_dict() if self._comparison else None,
        )

    def _in_order_of_queue(self, rows: pa.Table) -> pa.Table:
        rank = {place: number for number, place in enumerate(self._why)}
        return rows.take(pa.array(np.argsort([rank[place] for place in places_of(rows)], kind="stable")))

    def _add_reasons(self) -> None:
        for row in self.rows:
            why = self._why.get((row["key"], row["window"]))
            if why:
                row["why"] = why

    def _add_likeness(self, table: pa.Table) -> None:
        """Each row's place on the map and its neighbours, where the output has embeddings."""
        found = read_columns(
            self.config.predictions, ["key", "window", "embedding"], self.config.predictions_options
        )
        if "embedding" not in found.column_names:
            return
        at = {place: number for number, place in enumerate(places_of(found))}
        vectors = unit_embeddings(found.take(pa.array([at[p] for p in places_of(table)], pa.int64())))
        if vectors is None:
            return
        for row, point, near in zip(self.rows, map_points(vectors), nearest(vectors), strict=True):
            row |= {"point": point, "near": near}

    def _compare(self, other: str, truth: Truth) -> None:
        """The other run's answers beside these, and the figures of both."""
        options = self.config.predictions_options
        first, second = (read_answers(uri, options) for uri in (self.config.predictions, other))
        self._comparison = compare(first, second, truth)
        for row in self.rows:
            answer = second.get((row["key"], row["window"]))
            if answer:
                row["other"] = {"label": answer.label, "score": answer.score}

    def _write(self, strips: Iterator[Strip]) -> tuple[bytes, str]:
        """The page's bytes, and the URI of the page that is one file."""
        first = list(itertools.islice(strips, ALONE_ROWS))
        inside = [inline(strip) for strip in first]
        if len(first) == len(self.rows):
            page = self._render(self.rows, inside, self._links())
            if len(page) <= ALONE_BYTES:
                storage.write_bytes(self._out, page, self.config.output_options)
                return page, self._out
        folder = self._out.removesuffix(".html") + "_files"
        sheets = SheetWriter(folder, uuid4().hex[:8], self.config.output_options)
        pictures = list(sheets.place(itertools.chain(first, strips)))
        alone = storage.join(folder, f"first-{ALONE_ROWS}.html")
        storage.write_bytes(alone, self._alone(inside), self.config.output_options)
        name = storage.name_of(folder)
        page = self._render(self.rows, pictures, self._links(), folder=name)
        storage.write_bytes(self._out, page, self.config.output_options)
        sheets.delete_others()
        return page, alone

    def _alone(self, pictures: Sequence[dict[str, Any]]) -> bytes:
        """The first rows as one file of bounded size, with no link to any video."""
        rows, count = self.rows[: len(pictures)], len(pictures)
        while True:
            page = self._render(rows[:count], pictures[:count], [None] * count, errors=ALONE_ROWS)
            if len(page) <= ALONE_BYTES:
                return page
            # Never all of the excess at once: rows differ in size.
            count = int(count * max(0.5, 0.97 * ALONE_BYTES / len(page)))

    def _render(
        self,
        rows: Sequence[dict[str, Any]],
        pictures: Iterable[dict[str, Any]],
        links: Iterable[str | None],
        *,
        errors: int = MAX_ERRORS,
        folder: str | None = None,
    ) -> bytes:
        survey, uri = self._survey, storage.normalise_uri(self.config.predictions)
        partly = len(rows) < len(self.rows)
        failed = [error_row(row) for row in survey.errors[:errors]]
        for row, picture in zip(self.rows, pictures, strict=False):
            row |= {name: picture[name] for name in ("missing",) if name in picture}
        shown = [
            row | picture | {"link": link} for row, picture, link in zip(rows, pictures, links, strict=True)
        ]
        data = {
            "id": hashlib.blake2b(f"{uri} {survey.origin}".encode(), digest_size=8).hexdigest(),
            "videos": shown,
            "errors": failed,
            "folder": folder,
            "served": self._served,
            "queue": self.config.queue,
            "compare": self._comparison.to_dict() if self._comparison else None,
            "by": user() if self._served else "",
        }
        return render(
            title=self.config.title or uri.rstrip("/").rpartition("/")[2] or "predictions",
            origin=" · ".join([*([] if self.config.title else [uri]), *survey.origin]),
            tiles=survey.tiles,
            notes=list(_notes(survey, len(shown), len(failed), partly=partly, queue=self.config.queue)),
            data=data,
        ).encode()

    def _links(self) -> list[str | None]:
        """Where the page finds each row's video."""
        config = self.config
        if self._served:
            return [f"video/{row['key']}/{row['window']}" for row in self.rows]
        lasting_s = lifetime_s(config.presign) if config.presign else None
        return [_link(row["uri"], lasting_s, config.storage_options) for row in self.rows]


@contextmanager
def strips_of(table: pa.Table, config: ReviewConfig) -> Iterator[Iterator[Strip]]:
    """The strips of all rows, in order, made as they are asked for."""
    columns = (table[name].to_pylist() for name in ("uri", "etag", "clip_times_s"))
    requests = [StripRequest(u, e, tuple(t or ())) for u, e, t in zip(*columns, strict=True)]
    with (
        StripMaker(
            config.storage_options, frames=config.frames, height=config.height, workers=config.workers
        ) as maker,
        ProgressLine("review", len(requests), "videos") as progress,
    ):

        def advancing() -> Iterator[Strip]:
            for strip in maker.strips(requests):
                progress.advance()
                yield strip

        yield advancing()


def inline(strip: Strip) -> dict[str, Any]:
    if strip.jpeg is None:
        return {"missing": strip.missing}
    return {"strip": strip.data_uri, "size": strip.size}


def _link(uri: str, lifetime_s: int | None, options: StorageOptions) -> str | None:
    if not storage.is_remote(uri):
        return Path(uri).absolute().as_uri()
    return None if lifetime_s is None else storage.signed_url(uri, lifetime_s, options)


def _notes(survey: Survey, shown: int, errors: int, *, queue: str | None, partly: bool) -> Iterator[str]:
    if partly:
        yield (
            f"This file holds the first {shown:,} of the page's rows, the least confident first, and no links"
            " to videos; the whole page lies beside the predictions."
        )
    elif queue:
        yield f"Shown are the {shown:,} rows of the queue {queue}; the figures above are of all rows."
    elif shown < survey.good:
        yield (
            f"Shown are {shown:,} of {survey.good:,} labelled videos, picked at random; the figures above are"
            " of all. Set --limit to show more."
        )
    if errors < survey.failed:
        yield f"Listed are {errors:,} of {survey.failed:,} errors."


__all__ = ["PageMaker", "ReviewConfig", "ReviewSummary", "review"]

"""``tubelet index``: make the manifest of a bucket, or bring it up to date."""

from __future__ import annotations

import logging

from tubelet import storage
from tubelet.config import load_settings
from tubelet.corpus.index import IndexConfig, IndexSummary, index_corpus

from tubelet_jobs.common import RayOptions, connect_ray, print_summary, say

_log = logging.getLogger(__name__)


class IndexOptions(RayOptions, IndexConfig):
    """The command line of an index job."""


def command(options: IndexOptions) -> None:
    """List the videos under SRC, look into each, join labels and splits, and write the manifest.

    Labels: a table with `path`, `uri` or `key`, `label` (or `label_HEAD`; `a|b` is two labels), and where
    present `split`, `group`, `clip_start_s` and `clip_end_s`; `folders`, where each class has a folder; or a
    list as Kinetics, UCF101, HMDB51, Something-Something, EPIC-Kitchens, Charades, ActivityNet, AVA,
    MMAction2, SlowFast, Hugging Face, Label Studio or CVAT writes it. Splits: as the set was published, by a
    hash that never changes, by a column of the labels, or so that a group (a person, a scene) stays together.
    A page about all of it, with an example of each error, lies beside the manifest.

    Example: tubelet index s3://bucket/videos --out s3://bucket/manifest --labels s3://bucket/labels.csv
    """
    config = load_settings(IndexConfig, {name: getattr(options, name) for name in IndexConfig.model_fields})
    if options.ray_address and not config.dry_run:
        connect_ray(options.ray_address)
    summary = index_corpus(config)
    _report(summary)
    page = None if summary.dry_run else _page(summary, config)
    print_summary(
        {"report": page} | {name: value for name, value in summary.to_dict().items() if name != "warnings"}
    )


def _page(summary: IndexSummary, config: IndexConfig) -> str | None:
    """Write the page about the corpus; a page that cannot be made is no reason to fail."""
    from tubelet.corpus.beside import report_of
    from tubelet.review.corpus_page import corpus_page

    place = report_of(summary.out)
    try:
        page = corpus_page(summary.out, summary.to_dict())
        storage.write_bytes(place, page.encode(), config.options.for_writing())
    except Exception as error:
        _log.warning("no report could be made at %s: %s", place, error)
        return None
    if config.tracking_uri is not None:
        _track(summary, config, page)
    return place


def _track(summary: IndexSummary, config: IndexConfig, page: str) -> None:
    from tubelet.tracking import Tracker

    counts = {name: getattr(summary, name) for name in ("objects", "ok", "errors", "not_video", "labelled")}
    tags = {"tubelet.job": "index", "tubelet.manifest": summary.out}
    params = {"src": config.src, "labels": ", ".join(config.labels), "split": config.split}
    with Tracker.start(
        config.tracking_uri, "tubelet", "index", tags=tags, params=params, system_metrics=False
    ) as tracker:
        tracker.log_metrics(counts)
        tracker.log_text(page, "report.html")


def _report(summary: IndexSummary) -> None:
    for warning in summary.warnings:
        say(f"note: {warning}")
    if summary.segments:
        say(f"{summary.segments} labelled segments of videos")
    if summary.left_out:
        say(f"{summary.left_out} clips left out of training by a correction without a label")
    splits = ", ".join(f"{name} {count}" for name, count in summary.splits.items()) or "none"
    say(f"{summary.objects} objects, {summary.labelled} with a label; splits: {splits}")
    if summary.skipped:
        say(f"skipped {summary.skipped} more: {_told(summary.skipped_by)}")
    if summary.dry_run:
        say(f"dry run: would open {summary.to_probe} objects and write {summary.out}")
        return
    say(f"{summary.ok} videos ok, {summary.errors} errors, {summary.not_video} objects that are no video")
    if summary.duplicates is not None:
        say(f"{summary.duplicates} duplicates of others")
    if summary.errors:
        say(f"errors: {_told(summary.reasons)}")
    if summary.to_retry:
        say(f"{summary.to_retry} of them are the store's or the machine's doing: --update tries them again")


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())

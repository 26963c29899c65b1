"""``tubelet index``: make the manifest of a bucket, or bring it up to date."""

from __future__ import annotations

from tubelet.config import load_settings
from tubelet.corpus.index import IndexConfig, IndexSummary, index_corpus

from tubelet_jobs.common import RayOptions, connect_ray, print_summary, say


class IndexOptions(RayOptions, IndexConfig):
    """The command line of an index job."""


def command(options: IndexOptions) -> None:
    """List the videos under SRC, look into each, join labels and splits, and write the manifest.

    Labels: a table with `path`, `uri` or `key`, `label` (or `label_HEAD`; `a|b` is two labels), and where
    present `split`, `group`, `clip_start_s` and `clip_end_s`; `folders`, where each class has a folder; or a
    list as Kinetics, UCF101, HMDB51, Something-Something, EPIC-Kitchens, Charades, ActivityNet, AVA,
    MMAction2, SlowFast, Hugging Face, Label Studio or CVAT writes it. Splits: as the set was published, by a
    hash that never changes, by a column of the labels, or so that a group (a person, a scene) stays together.

    Example: tubelet index s3://bucket/videos --out s3://bucket/manifest --labels s3://bucket/labels.csv
    """
    config = load_settings(IndexConfig, {name: getattr(options, name) for name in IndexConfig.model_fields})
    if options.ray_address and not config.dry_run:
        connect_ray(options.ray_address)
    summary = index_corpus(config)
    _report(summary)
    print_summary({name: value for name, value in summary.to_dict().items() if name != "warnings"})


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
    if summary.errors:
        say(f"errors: {_told(summary.reasons)}")
    if summary.to_retry:
        say(f"{summary.to_retry} of them are the store's or the machine's doing: --update tries them again")


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())

"""What the demo leaves: manifest, model, predictions and pages, as plain files about the videos beside."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from tubelet import storage
from tubelet.corpus.manifest import read_manifest, write_manifest
from tubelet.inference.output import DESCRIPTION, OutputFiles, parquet_bytes
from tubelet.inference.sink import part_name, part_numbers
from tubelet.tracking.registry import MODEL_FILE

from tubelet_jobs.demo_steps import Places

WORST = "worst.html"
# What the videos of the inbox show; no job but the loop reads it.
TRUTH = "inbox-truth.csv"


def leave_as_files(places: Places, out: Path) -> None:
    """Copy what the jobs wrote to a store into ``out``, where it is about the files in ``out``/corpus.

    What lies in ``out`` already stays as it is, except that the page of the worst mistakes is put beside the
    other page.
    """
    worst = out / "evaluation" / WORST
    if worst.is_file():
        shutil.copyfile(worst, out / WORST)
    if places.inbox is None or not storage.is_remote(places.source):
        return
    moved = {
        f"{places.source.rstrip('/')}/": out / "corpus/labelled",
        f"{places.inbox.rstrip('/')}/": out / "corpus/inbox",
    }
    write_manifest(_relocated(read_manifest(places.manifest), moved), str(out / "manifest"))
    (out / "model").mkdir(exist_ok=True)
    storage.download_file(storage.join(places.model, MODEL_FILE), out / "model" / MODEL_FILE)
    _copy_rows(OutputFiles(places.predictions), OutputFiles(str(out / "predictions")), moved)
    evaluation = OutputFiles(str(out / "evaluation/predictions"))
    _copy_rows(evaluation, evaluation, moved)


def _copy_rows(source: OutputFiles, target: OutputFiles, moved: Mapping[str, Path]) -> None:
    names = source.names()
    for number in part_numbers(names):
        table = _relocated(source.read_table(part_name(number)), moved)
        target.write(part_name(number), parquet_bytes(table))
    if DESCRIPTION in names and source.uri != target.uri:
        target.write(DESCRIPTION, source.read(DESCRIPTION))


def _relocated(table: pa.Table, moved: Mapping[str, Path]) -> pa.Table:
    """The rows about the same videos where they lie now, with the etags that they have there."""
    uris, etags = table["uri"].to_pylist(), table["etag"].to_pylist()
    for i, uri in enumerate(uris):
        for prefix, folder in moved.items():
            if uri and uri.startswith(prefix):
                uris[i] = storage.normalise_uri(str(folder / uri.removeprefix(prefix)))
                found = storage.stat(uris[i])
                etags[i] = found.etag if found else etags[i]
    for name, values in (("uri", uris), ("etag", etags)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, pa.string()))
    return table


def write_truth(out: Path, inbox: Mapping[str, str]) -> None:
    """What the inbox shows, for who plays the person that corrects."""
    with (out / TRUTH).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows(inbox.items())


def read_truth(out: Path) -> dict[str, str]:
    """See :func:`write_truth`."""
    with (out / TRUTH).open(encoding="utf-8", newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}

"""Rows for other tools: a CSV of windows, and Label Studio's tasks out and its answers back in."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import S3Bucket
from support.corpus import put, put_text
from support.s3_proxy import Fault, Mode, s3_proxy
from tubelet import storage
from tubelet.corpus.labels import load_labels
from tubelet.inference.output import OutputFiles, parquet_bytes
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import part_name
from tubelet.labelling.export import export
from tubelet.storage import DEFAULT_OPTIONS, list_objects


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> OutputFiles:
    schema = RowShape({"label": 2}, False, None, 0, False).schema()
    files = OutputFiles(str(folder))
    given: list[dict[str, Any]] = [
        {"status": "ok", "model": "m", "sampling": "s", "views": 1} | row for row in rows
    ]
    files.write(part_name(0), parquet_bytes(table_of(given, schema)))
    return files


def window(video: str, number: int, label: str, score: float) -> dict[str, Any]:
    about = {"key": video, "window": number, "uri": video, "label": label, "score": score}
    return about | {"start_s": 2.0 * number, "end_s": 2.0 * number + 2}


def test_windows_are_one_csv_with_start_end_label_and_confidence(tmp_path: Path) -> None:
    files = write_rows(
        tmp_path / "out",
        [
            window("a, b.mp4", 0, "left", 0.75),
            window("a, b.mp4", 1, "right", 0.5),
            {"key": "c", "window": 0, "uri": "c.mp4", "status": "error", "error_code": "open_error"},
        ],
    )
    export(files, str(tmp_path / "x.windows.csv"))
    with (tmp_path / "x.windows.csv").open(newline="") as file:
        found = list(csv.reader(file))
    assert found == [
        ["uri", "start_s", "end_s", "label", "confidence"],
        ["a, b.mp4", "0.0", "2.0", "left", "0.75"],
        ["a, b.mp4", "2.0", "4.0", "right", "0.5"],
    ]


@pytest.mark.parametrize("name", ["x.csv", "x.label-studio.json"])
def test_a_store_that_is_away_at_the_end_is_waited_for(
    name: str, tmp_path: Path, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_rows(tmp_path / "out", [window("a.mp4", 0, "left", 0.75)])
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3_proxy(s3.server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.fault = Fault(Mode.OVERLOADED, match="/x.", times=1)
        export(files, f"{s3.uri}/{name}")
    assert proxy.fault.hits == 1
    assert b"a.mp4" in storage.read_bytes(f"{s3.uri}/{name}")


@pytest.mark.parametrize("whole", [True, False])
def test_label_studio_s_answers_come_back_as_labels_of_the_same_videos(tmp_path: Path, whole: bool) -> None:
    put(str(tmp_path / "v"), {"a.mp4": b"1", "b.mp4": b"2"})
    uris = [info.uri for info in list_objects(str(tmp_path / "v"))]
    rows = [window(uri, n, ["left", "right"][n], 0.5) for uri in uris for n in (0, 1)]
    if whole:
        rows = [row | {"start_s": None, "end_s": None} for row in rows if not row["window"]]
    export(write_rows(tmp_path / "out", rows), str(tmp_path / "t.label-studio.json"))
    tasks = json.loads((tmp_path / "t.label-studio.json").read_text("utf-8"))
    assert [task["data"]["video"] for task in tasks] == uris
    page = ET.fromstring((tmp_path / "t.label-studio.xml").read_text("utf-8"))
    names = {element.get("name") for element in page}
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["score"] == 0.5
        for result in prediction["result"]:
            assert {result["from_name"], result["to_name"]} == names
        # What a person accepts as it is: the same results, as an annotation.
        task["annotations"] = [{"result": prediction["result"]}]
    answers = put_text(str(tmp_path / "answers.json"), json.dumps(tasks))
    labels = load_labels(answers, storage.normalise_uri(str(tmp_path / "v")), DEFAULT_OPTIONS, "split")
    for info in list_objects(str(tmp_path / "v")):
        row = labels.lookup(info)
        if whole:
            assert row.values == {"label": "left"}
        else:
            spans = [(s.start_s, s.end_s, s.values) for s in row.segments]
            assert spans == [(0.0, 2.0, {"label": "left"}), (2.0, 4.0, {"label": "right"})]


def test_a_table_without_calibration_gives_its_scores(tmp_path: Path) -> None:
    assert pa.types.is_floating(RowShape({"label": 2}, False, None, 0, False).schema().field("score").type)
    files = write_rows(tmp_path / "out", [window("a.mp4", 0, "left", 0.25)])
    export(files, str(tmp_path / "x.windows.csv"))
    assert (tmp_path / "x.windows.csv").read_text().endswith(",left,0.25\n")

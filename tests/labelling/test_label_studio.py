"""The real Label Studio: tasks imported with their predictions, answered, exported, taken as labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import free_port, wait_until
from support.corpus import put, put_text
from tubelet import storage
from tubelet.corpus.labels import load_labels
from tubelet.inference.output import OutputFiles, parquet_bytes
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import part_name
from tubelet.labelling.export import export
from tubelet.storage import DEFAULT_OPTIONS, list_objects

# It pins other versions than tubelet's, so it lives in an environment of its own: name its command here.
LABEL_STUDIO = os.environ.get("TUBELET_LABEL_STUDIO") or shutil.which("label-studio")
TOKEN = "0123456789abcdef0123456789abcdef01234567"  # of a server that lives for this test
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        LABEL_STUDIO is None, reason="Label Studio is not installed: pip install label-studio"
    ),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with label_studio(tmp_path_factory.mktemp("studio")) as found:
        yield found


@contextmanager
def label_studio(folder: Path) -> Iterator[str]:
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    env |= {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }
    command = [str(LABEL_STUDIO), "start", "--no-browser", "--port", str(port), "--data-dir", str(folder)]
    command += ["--username", "who@example.org", "--password", "for-this-test-only", "--user-token", TOKEN]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until(lambda: server.poll() is not None or is_up(f"http://127.0.0.1:{port}"), 600)
        assert server.poll() is None, (folder / "log").read_text()[-3000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/api/{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read()[:1000]!r}") from error


@pytest.mark.parametrize("whole", [True, False])
def test_tasks_go_in_and_answers_come_back(address: str, tmp_path: Path, whole: bool) -> None:
    put(str(tmp_path / "v"), {"a.mp4": b"1", "b & c.mp4": b"2"})
    uris = [info.uri for info in list_objects(str(tmp_path / "v"))]
    rows = []
    for uri in uris:
        for number in range(1 if whole else 2):
            row = {"key": uri, "window": number, "uri": uri, "status": "ok", "model": "m/3", "sampling": "s"}
            row |= {"views": 1, "label": ["left", "<right>"][number], "score": 0.5 + number / 4}
            times = {} if whole else {"start_s": 2.0 * number, "end_s": 2.0 * number + 2}
            rows.append(row | times)
    files = OutputFiles(str(tmp_path / "out"))
    schema = RowShape({"label": 2}, False, None, 0, False).schema()
    files.write(part_name(0), parquet_bytes(table_of(rows, schema)))
    export(files, str(tmp_path / "t.label-studio.json"))

    interface = (tmp_path / "t.label-studio.xml").read_text("utf-8")
    project = ask(address, "projects", {"title": f"whole {whole}", "label_config": interface})["id"]
    given = json.loads((tmp_path / "t.label-studio.json").read_text("utf-8"))
    imported = ask(address, f"projects/{project}/import", given)
    assert (imported["task_count"], imported["prediction_count"]) == (2, 2)
    tasks = ask(address, f"tasks?project={project}&fields=all")["tasks"]
    assert sorted(task["data"]["video"] for task in tasks) == sorted(uris)
    for task in tasks:
        (prediction,) = ask(address, f"predictions?task={task['id']}")
        assert prediction["model_version"] == "m/3"
        # What a person accepts as it is.
        ask(address, f"tasks/{task['id']}/annotations", {"result": prediction["result"]})

    exported = ask(address, f"projects/{project}/export?exportType=JSON")
    answers = put_text(str(tmp_path / "answers.json"), json.dumps(exported))
    labels = load_labels(answers, storage.normalise_uri(str(tmp_path / "v")), DEFAULT_OPTIONS, "split")
    for info in list_objects(str(tmp_path / "v")):
        row = labels.lookup(info)
        if whole:
            assert row.values == {"label": "left"}
        else:
            spans = [(span.start_s, span.end_s, span.values["label"]) for span in row.segments]
            assert spans == [(0.0, 2.0, "left"), (2.0, 4.0, "<right>")]

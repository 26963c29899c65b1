"""One run through crash and outage: nothing lost, nothing twice, the right end; models come back whole."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from support import free_port, mlflow_server, wait_until
from support.hostile import HostileFolder
from tubelet.config import UserError
from tubelet.tracking import ModelLink, Tracker, default_tracking_uri, model_name
from tubelet.tracking.names import run_name, user
from tubelet.tracking.registry import check_uri, code_tags, describe_version
from tubelet.tracking.store import OWNER_TAG
from tubelet.tracking.tracker import metric_name


@pytest.fixture(autouse=True)
def _own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def run_of(uri: str, run_id: str) -> mlflow.entities.Run:
    return mlflow.MlflowClient(uri).get_run(run_id)


def steps_of(uri: str, run_id: str, name: str) -> list[int]:
    return [point.step for point in mlflow.MlflowClient(uri).get_metric_history(run_id, name)]


def start(uri: str, run_id: str | None = None, *, wait_s: float = 200, **more: object) -> Tracker:
    # A busy machine takes its time to make the database; these tests need the run's id.
    return Tracker.start(uri, "tests", "a run", run_id=run_id, system_metrics=False, wait_s=wait_s, **more)  # type: ignore[arg-type]


# ---- one run


def test_a_run_has_what_was_logged_and_its_origin(database: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().plot([1, 2])
    with start(
        database,
        tags={"tubelet.manifest": "s3://b/m"},
        params={"lr": 0.1, "long": "x" * 9000},
        description="what *it* does",
    ) as tracker:
        for step in range(1500):
            tracker.log_metrics({"loss": 1 / (step + 1), "class/a b:ä": 1.0}, step)
        tracker.log_figure(figure, "figures/plot.png")
        tracker.log_text("model: tiny", "recipe.yaml")
        tracker.log_dataset("s3://b/m", "0123456789abcdef", "train", 7)
        tracker.log_dataset("s3://b/m", "fedcba9876543210", "validation", 3)
        run_id = tracker.run_id
    run, client = run_of(database, run_id), mlflow.MlflowClient(database)
    assert run.info.status == "FINISHED"
    assert steps_of(database, run_id, "loss") == list(range(1500))
    assert run.data.metrics[metric_name("class/a b:ä")] == 1.0
    assert run.data.tags["mlflow.note.content"] == "what *it* does"
    assert run.data.tags["mlflow.user"] == run.info.user_id == user()
    assert run.data.params["lr"] == "0.1"
    assert run.data.params["long"].startswith("xxx")
    data = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert {context: one.digest for context, one in data.items()} == {
        "train": "0123456789abcdef",
        "validation": "fedcba9876543210",
    }
    assert data["train"].name == "m"
    assert {"tubelet.manifest", "tubelet.version", "mlflow.source.name"} <= set(run.data.tags)
    assert {found.path for found in client.list_artifacts(run_id)} == {"figures", "recipe.yaml"}
    assert client.list_artifacts(run_id, "figures")[0].file_size > 1000


def test_resume_goes_on_in_the_same_run_and_logs_no_step_twice(database: str) -> None:
    first = start(database, params={"workers": 2})
    for step in range(20):
        first.log_metrics({"loss": 0.5}, step)
    first.finish("KILLED")
    # The resumed process begins at the checkpoint of step 12.
    second = start(database, run_id=first.run_id, params={"workers": 3})
    for step in range(12, 30):
        second.log_metrics({"loss": 0.25}, step)
    second.log_metrics({"new": 1.0}, 12)
    assert run_of(database, first.run_id).info.status == "RUNNING"
    second.finish()
    assert second.run_id == first.run_id
    assert steps_of(database, first.run_id, "loss") == list(range(30))
    assert steps_of(database, first.run_id, "new") == [12]
    run = run_of(database, first.run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["workers"], run.data.tags["changed.workers"]) == ("2", "3")


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_an_error_is_the_run_s_end(database: str, error: type[BaseException], status: str) -> None:
    tracker = start(database)
    with pytest.raises(error), tracker:
        raise error
    assert run_of(database, tracker.run_id).info.status == status


def test_a_refused_record_holds_nothing_up(database: str, caplog: pytest.LogCaptureFixture) -> None:
    with start(database) as tracker:
        tracker.set_tags({"": "a tag without a name"})
        tracker.log_metrics({"after": 1.0}, 0)
    run = run_of(database, tracker.run_id)
    assert run.data.metrics == {"after": 1.0}
    assert run.info.status == "FINISHED"
    assert "1 records that MLflow refused are kept" in caplog.text


def test_logging_after_the_end_does_no_harm(database: str) -> None:
    tracker = start(database)
    tracker.finish()
    tracker.log_metrics({"late": 1.0}, 1)
    tracker.finish("FAILED")
    assert run_of(database, tracker.run_id).info.status == "FINISHED"


def test_system_metrics_are_sampled(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tubelet.tracking.system.EVERY_S", 0.2)
    from tubelet.tracking.system import SystemSampler

    seen: list[dict[str, float]] = []
    sampler = SystemSampler(lambda values: seen.append(dict(values)), every_s=0.1)
    sampler.start()
    wait_until(lambda: len(seen) >= 2, 90)
    sampler.stop()
    assert seen[0]["system/cpu_utilization_percentage"] >= 0
    assert seen[0]["system/system_memory_usage_megabytes"] > 0


def test_wrong_uri_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="--tracking-uri 'htp://host': not one that MLflow knows"):
        start("htp://host")


def test_relative_paths_mean_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert check_uri("sqlite:///sub/x.db") == f"sqlite:///{tmp_path}/sub/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert default_tracking_uri() == "http://server:5000"


def test_names_of_models_are_mended_or_refused() -> None:
    assert model_name("fight.run 1/a") == "fight-run-1-a"
    with pytest.raises(UserError, match="no name for a model"):
        model_name("...")


def test_code_version_is_the_commit() -> None:
    tags = code_tags()
    root = Path(__file__).resolve().parents[1]
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert tags["tubelet.version"]


# ---- the driver dies

DRIVER = """
import sys, tempfile
tempfile.tempdir = sys.argv[2]
from tubelet.tracking import Tracker
tracker = Tracker.start(sys.argv[1], "tests", "killed", system_metrics=False, wait_s=200)
for step in range(10):
    tracker.log_metrics({"loss": 1.0}, step)
if "flush" in sys.argv:
    tracker.flush()
print(tracker.run_id, flush=True)
sys.stdin.read()
"""


def start_driver(uri: str, spool: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    # As a command in a person's folder: the guard, too, must not import from it.
    folder = HostileFolder(spool / "work")
    driver = subprocess.Popen(
        [sys.executable, "-P", "-c", DRIVER, uri, str(spool), *more],
        cwd=folder.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout
    return driver, driver.stdout.readline().strip()


def test_a_killed_driver_s_run_ends_as_killed_with_all_it_logged(database: str, tmp_path: Path) -> None:
    driver, run_id = start_driver(database, tmp_path)
    assert run_of(database, run_id).info.status == "RUNNING"
    driver.kill()
    driver.wait()
    wait_until(lambda: run_of(database, run_id).info.status == "KILLED", 180)
    assert steps_of(database, run_id, "loss") == list(range(10))


def test_the_watchdog_leaves_a_resumed_run_alone(database: str, tmp_path: Path) -> None:
    driver, run_id = start_driver(database, tmp_path, "flush")
    os.kill(driver.pid, signal.SIGSTOP)  # so that the resume is first, as when a node hangs
    resumed = start(database, run_id=run_id)
    driver.kill()
    driver.wait()
    owner = run_of(database, run_id).data.tags[OWNER_TAG]
    resumed.log_metrics({"loss": 2.0}, 10)
    assert resumed.flush()
    time.sleep(8)  # the watchdog starts Python and MLflow before it looks
    run = run_of(database, run_id)
    assert (run.info.status, run.data.tags[OWNER_TAG]) == ("RUNNING", owner)
    resumed.finish()
    assert run_of(database, run_id).info.status == "FINISHED"
    assert steps_of(database, run_id, "loss") == list(range(11))


# ---- the server is away


class Link:
    """The way to a real MLflow server, which can be cut and mended: a TCP relay in this process."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        if self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the listener is closed when the link is cut
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("server"), port := free_port()):
        yield port


@pytest.fixture
def link(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """A way to the server that is cut at first; the spool asks often, so that tests are short."""
    monkeypatch.setattr("tubelet.tracking.spool.BACKOFF_S", (0.2, 1.0))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    link = Link(server)
    yield link
    link.cut()


def test_an_outage_loses_nothing_and_holds_nothing_up(link: Link) -> None:
    # The server is not even there when the run begins.
    tracker = start(link.uri, params={"lr": 1}, wait_s=2)
    key = tracker.run_id
    tracker.log_metrics({"loss": 0.0}, 0)
    link.mend()
    assert tracker.flush(60)
    run_id = tracker.run_id
    assert run_id != key
    # It goes away in the middle.
    link.cut()
    began_s = time.monotonic()
    for step in range(1, 500):
        tracker.log_metrics({"loss": float(step)}, step)
        if step % 100 == 0:
            tracker.log_text(str(step), f"steps/{step}.txt")
    tracker.set_tags({"during": "outage"})
    assert time.monotonic() - began_s < 30
    assert not tracker.flush(2)
    link.mend()
    tracker.finish(wait_s=120)
    run = run_of(link.uri, run_id)
    assert (run.info.status, run.data.params["lr"], run.data.tags["during"]) == ("FINISHED", "1", "outage")
    assert sorted(steps_of(link.uri, run_id, "loss")) == list(range(500))
    text = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="steps/400.txt", tracking_uri=link.uri
    )
    assert Path(text).read_text() == "400"
    # What a process stored before it knew the run's id still leads to the run.
    again = start(link.uri, run_id=key)
    assert again.run_id == run_id
    again.finish()


def test_a_run_that_ends_during_an_outage_still_gets_its_end(link: Link) -> None:
    link.mend()
    tracker = start(link.uri)
    link.cut()
    tracker.log_metrics({"loss": 1.0}, 7)
    began_s = time.monotonic()
    tracker.finish("FINISHED", wait_s=1)
    assert time.monotonic() - began_s < 20
    link.mend()
    wait_until(lambda: run_of(link.uri, tracker.run_id).info.status == "FINISHED", 180)
    assert steps_of(link.uri, tracker.run_id, "loss") == [7]


def test_a_prediction_run_points_at_the_model_s_run(database: str) -> None:
    trained = start(database)
    trained.finish()
    with start(database) as tracker:
        tracker.link_model(ModelLink("models:/m@champion", trained.run_id, "m", "4"))
    tags = run_of(database, tracker.run_id).data.tags
    assert tags["tubelet.model_run_id"] == trained.run_id
    assert tags["tubelet.model_version"] == "models:/m/4"
    assert tags["mlflow.parentRunId"] == trained.run_id


def test_a_version_s_description_has_each_evaluation_once_and_fits(database: str) -> None:
    client = mlflow.MlflowClient(database)
    client.create_registered_model("described")
    version = client.create_model_version("described", "file:///nowhere").version
    link = ModelLink("models:/described/1", None, "described", str(version))
    client.update_model_version("described", version, description="## Data\n\n- one\n")
    for title, text in (("Evaluation: test", "old"), ("Evaluation: val", "1"), ("Evaluation: test", "new")):
        describe_version(database, link, title, text)
    found = client.get_model_version("described", version).description
    assert found == "## Evaluation: test\n\nnew\n\n## Evaluation: val\n\n1\n\n## Data\n\n- one\n"
    describe_version(database, link, "Evaluation: many", "a class\n" * 300)
    describe_version(database, link, "Evaluation: last", "a class\n" * 400)
    found = client.get_model_version("described", version).description
    assert len(found) <= 5000
    assert found.startswith("## Evaluation: last"), "what is new is not what is cut"


def test_a_run_is_called_what_it_is_given_or_what_it_is_about() -> None:
    assert run_name("mine", "tiny", "model2") == "mine"
    assert re.fullmatch(r"tiny model2 \d{4}-\d\d-\d\d \d\d:\d\d", run_name(None, "tiny", "model2"))

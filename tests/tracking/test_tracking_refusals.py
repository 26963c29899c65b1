"""What MLflow refuses: at the start it ends the job with a line, later it is kept and named."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tubelet.config import UserError
from tubelet.tracking import Tracker
from tubelet.tracking.flush import flush_spool
from tubelet.tracking.spool import REFUSED
from tubelet.tracking.spool_folder import spool_root


@pytest.fixture(autouse=True)
def _own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def start(uri: str, experiment: str, **more: Any) -> Tracker:
    return Tracker.start(uri, experiment, "a run", system_metrics=False, wait_s=200, **more)


def delete_experiment(uri: str, name: str) -> str:
    client = mlflow.MlflowClient(uri)
    identity = str(client.get_experiment_by_name(name).experiment_id)
    client.delete_experiment(identity)
    return identity


def steps_of(uri: str, run_id: str, name: str) -> list[int]:
    return [point.step for point in mlflow.MlflowClient(uri).get_metric_history(run_id, name)]


def test_a_deleted_experiment_is_refused_at_the_start(database: str) -> None:
    start(database, "deleted").finish()
    identity = delete_experiment(database, "deleted")
    with pytest.raises(UserError, match=r"'deleted' at .* is deleted\n.*--experiment") as caught:
        start(database, "deleted")
    assert f"`mlflow experiments restore --experiment-id {identity}`" in str(caught.value)
    assert not spool_root().exists()
    with pytest.raises(UserError, match=r"'deleted' at .* is deleted\n.*--experiment"):
        Tracker.check(database, "deleted")
    Tracker.check(database, "never seen")
    assert mlflow.MlflowClient(database).get_experiment_by_name("never seen") is None, "a look makes nothing"
    Tracker.check("http://127.0.0.1:9", "x", wait_s=0.1)  # nobody there: that is no refusal


def test_a_run_of_a_deleted_experiment_goes_on_in_another(database: str) -> None:
    first = start(database, "was deleted")
    first.finish()
    delete_experiment(database, "was deleted")
    with pytest.raises(UserError, match=r"'was deleted' at .* is deleted"):
        start(database, "was deleted", run_id=first.run_id)
    with start(database, "in its place", run_id=first.run_id) as second:
        second.log_metrics({"loss": 1.0}, 3)
    assert second.run_id != first.run_id
    assert steps_of(database, second.run_id, "loss") == [3]


def test_a_deleted_run_is_refused(database: str) -> None:
    first = start(database, "runs")
    first.finish()
    mlflow.MlflowClient(database).delete_run(first.run_id)
    with pytest.raises(UserError, match=rf"`mlflow runs restore --run-id {first.run_id}`"):
        start(database, "runs", run_id=first.run_id)


def test_what_is_refused_in_the_middle_is_kept_named_and_sent_on_resume(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(database, "deleted later")
    tracker.log_metrics({"loss": 1.0}, 0)
    assert tracker.flush()
    identity = delete_experiment(database, "deleted later")
    for step in range(1, 6):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.log_text("kept too", "notes.txt")
    with caplog.at_level(logging.WARNING):
        tracker.finish()
    (kept,) = spool_root().glob(f"*/{REFUSED}")
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["record"]["kind"] for line in lines] == ["metrics"] * 5 + ["file", "status"]
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("MLflow refused records: ")
    assert said[-1] == f"7 records that MLflow refused are kept in {kept}"
    assert all(str(kept) in line for line in said)

    mlflow.MlflowClient(database).restore_experiment(identity)
    with start(database, "deleted later", run_id=tracker.run_id) as again:
        again.log_metrics({"loss": 1.0}, 6)
    assert again.run_id == tracker.run_id
    assert steps_of(database, tracker.run_id, "loss") == list(range(7))
    assert [f.path for f in mlflow.MlflowClient(database).list_artifacts(tracker.run_id)] == ["notes.txt"]
    assert not spool_root().exists()


def test_one_bad_record_takes_no_others_along(database: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), start(database, "bad records") as tracker:
        tracker._spool.put({"kind": "metrics", "values": {"a\0b": 1.0}, "step": 1, "time_ms": 1})
        for step in range(20):
            tracker.log_metrics({"loss": 1.0}, step)
    assert steps_of(database, tracker.run_id, "loss") == list(range(20))
    assert "1 records that MLflow refused are kept" in caplog.records[-1].getMessage()


def test_what_the_watchdog_may_not_send_is_kept(database: str, tmp_path: Path) -> None:
    tracker = start(database, "watched")
    tracker.finish()
    mlflow.MlflowClient(database).update_run(tracker.run_id, status="RUNNING")
    owner = mlflow.MlflowClient(database).get_run(tracker.run_id).data.tags["tubelet.owner"]
    folder = tmp_path / "left"
    folder.mkdir()
    state = {"uri": database, "experiment": "watched", "run_name": "a run", "key": "k", "owner": owner}
    state |= {"run_id": tracker.run_id, "tags": {}}
    (folder / "state.json").write_text(json.dumps(state))
    bad = {"kind": "tags", "values": {"": "a tag without a name"}}
    (folder / "journal.jsonl").write_text(json.dumps(bad) + "\n")
    assert flush_spool(folder, state, {"kind": "status", "status": "KILLED", "time_ms": 1})
    assert json.loads((folder / REFUSED).read_text())["record"] == bad
    assert mlflow.MlflowClient(database).get_run(tracker.run_id).info.status == "KILLED"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("garbage", "cannot be read .file is not a database.: restore it from a backup"),
        ("older", "is of an older MLflow: back it up, then run `mlflow db upgrade sqlite:///"),
        ("newer", f"is of a newer MLflow than the {mlflow.__version__} here"),
    ],
)
def test_a_database_of_another_kind_is_one_line(
    database: str, tmp_path: Path, kind: str, message: str
) -> None:
    other = tmp_path / "other.db"
    if kind == "garbage":
        other.write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    else:
        shutil.copyfile(database.removeprefix("sqlite:///"), other)
        with sqlite3.connect(other) as connection:
            version = "90e64c465722" if kind == "older" else "ffffffffffff"
            connection.execute("update alembic_version set version_num = ?", (version,))
    with pytest.raises(UserError, match=message) as caught:
        start(f"sqlite:///{other}", "x")
    assert "\n" not in str(caught.value)


# ---- the folder for records


def test_a_spool_that_others_may_write_is_closed_to_them(database: str) -> None:
    spool_root().mkdir()
    spool_root().chmod(0o777)
    with start(database, "modes"):
        assert spool_root().stat().st_mode & 0o777 == 0o700


def test_a_spool_of_another_user_is_refused(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spool_root().mkdir()
    place = spool_root()
    monkeypatch.setattr("tubelet.tracking.spool_folder.spool_root", lambda: place)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"is not a folder of yours.*TMPDIR"):
        start(database, "modes")


def test_a_link_in_place_of_the_spool_is_refused(database: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    spool_root().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is not a folder of yours"):
        start(database, "modes")

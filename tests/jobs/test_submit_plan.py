"""What `tubelet submit` sends: places that other nodes reach, and nothing of this machine alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tubelet.config import UserError
from tubelet_jobs.environment import forwarded, make_paths_absolute
from tubelet_jobs.remote.client import _LogPrinter, _pack, auth_token
from tubelet_jobs.remote.plan import JobPlan, plan_job

TRAIN = ["train", "--manifest", "s3://b/m", "--out", "s3://b/run"]
SERVER = ["--tracking-uri", "http://mlflow:5000"]


@pytest.fixture(autouse=True)
def _no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_remote_places_pass_unchanged() -> None:
    argv = [*TRAIN, *SERVER, "--init", "models:/m@champion", "batch=4", "workers=2..4"]
    assert plan_job(argv, env={}).argv == tuple(argv)


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["train", "--manifest", "s3://b/m", "--out", "runs/1", *SERVER], "--out runs/1"),
        (["train", "--manifest=/data/m", "--out=s3://b/r", *SERVER], "--manifest /data/m"),
        (["index", "/data/videos", "--out", "s3://b/m"], "SRC /data/videos"),
        (["label", "file:///data", "--model", "s3://b/r", "--out", "s3://b/p", *SERVER], "SRC file:///data"),
        (["review", "predictions", "--out", "s3://b/page.html"], "PREDICTIONS predictions"),
        (["evaluate", "--model", "run1", "--manifest", "s3://b/m", *SERVER], "--model run1"),
    ],
)
def test_local_places_are_refused_with_the_flag_to_set(argv: list[str], flag: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_job(argv, env={})
    assert flag in str(caught.value)
    assert "--shared-fs" in str(caught.value)


def test_shared_folder_makes_local_places_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["index", "videos", f"--out={tmp_path}/m"]
    plan = plan_job(argv, shared=[str(tmp_path)], env={})
    assert plan.argv == ("index", f"{tmp_path}/videos", f"--out={tmp_path}/m")
    with pytest.raises(UserError, match="--out"):
        plan_job(["index", "videos", "--out", "/elsewhere/m"], shared=[str(tmp_path)], env={})


@pytest.mark.parametrize("uri", [None, "sqlite:////data/mlflow.db", "sqlite:///mlflow.db", "/data/mlruns"])
def test_tracking_on_this_machine_is_refused(uri: str | None) -> None:
    given = [] if uri is None else ["--tracking-uri", uri]
    with pytest.raises(UserError, match=r"(?s)tracking.*--tracking-uri http"):
        plan_job([*TRAIN, *given], env={})


def test_tracking_database_in_a_shared_folder_is_taken() -> None:
    argv = [*TRAIN, "--tracking-uri", "sqlite:////data/mlflow.db"]
    assert plan_job(argv, shared=["/data"], env={}).argv == tuple(argv)


def test_tracking_server_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert plan_job(TRAIN, env={}).argv == tuple(TRAIN)


def test_servers_named_localhost_are_refused_for_a_head_elsewhere() -> None:
    argv = [*TRAIN, "--tracking-uri", "http://localhost:5000"]
    plan_job(argv, address="http://127.0.0.1:8265", env={})
    with pytest.raises(UserError, match="--tracking-uri"):
        plan_job(argv, address="http://head:8265", env={})
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        plan_job([*TRAIN, *SERVER], address="http://head:8265", env=env)


@pytest.mark.parametrize("argv", [[], ["demo"], ["submit"], ["bench", "decode"], ["trian"]])
def test_jobs_that_are_none_for_a_cluster(argv: list[str]) -> None:
    with pytest.raises(UserError, match="choose of index"):
        plan_job(argv, env={})


def test_recipe_and_label_files_travel(tmp_path: Path) -> None:
    recipe, labels = tmp_path / "mine.yaml", tmp_path / "my labels.csv"
    recipe.write_text("batch: 4\n", "utf-8")
    labels.write_text("path,label\n", "utf-8")
    plan = plan_job([*TRAIN, *SERVER, "--recipe", str(recipe)], env={})
    assert plan.argv[-1] == "files/recipe.yaml"
    assert plan.files == {"files/recipe.yaml": recipe}
    plan = plan_job(["index", "s3://b/v", "--out", "s3://b/m", f"--labels={labels}"], env={})
    assert plan.argv[-1] == "--labels=files/labels.csv"


def test_package_is_code_and_shipped_files_only(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("batch: 4\n", "utf-8")
    code, work = _pack(JobPlan(("train",), {"files/recipe.yaml": recipe}), tmp_path / "pack")
    assert [path.name for path in code] == ["tubelet", "tubelet_jobs"]
    files = [path for path in (tmp_path / "pack").rglob("*") if path.is_file()]
    names = {
        path.relative_to(code[0].parent).as_posix() for path in files if path.is_relative_to(code[0].parent)
    }
    assert {"tubelet_jobs/cli.py", "tubelet_jobs/recipes/tiny.yaml", "tubelet/config.py"} <= names
    assert {name.split("/")[0] for name in names} == {"tubelet_jobs", "tubelet"}
    assert [path for path in files if path.is_relative_to(work)] == [work / "files/recipe.yaml"]
    assert not [name for name in names if "__pycache__" in name]
    assert sum(path.stat().st_size for path in files) < 5_000_000


def test_only_what_nodes_can_use_is_forwarded() -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_PROFILE": "me",
        "AWS_CONFIG_FILE": "/home/me/.aws/config",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "RAY_AUTH_TOKEN": "t",
        "HOME": "/home/me",
    }
    assert set(forwarded(environ, same_machine=False)) == {"AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_URI"}
    here = {"AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE", "AWS_PROFILE", "MLFLOW_TRACKING_URI"}
    assert set(forwarded(environ, same_machine=True)) == here


def test_paths_of_the_environment_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "AWS_CONFIG_FILE": "config",
        "AWS_PROFILE": "me",
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "PYTHONPATH": "code:/lib:",
        "TUBELET_CACHE": "/cache",
    }
    make_paths_absolute(environ)
    assert environ == {
        "AWS_CONFIG_FILE": f"{tmp_path}/config",
        "AWS_PROFILE": "me",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "PYTHONPATH": f"{tmp_path}/code:/lib:{tmp_path}",
        "TUBELET_CACHE": "/cache",
    }


def test_token_comes_from_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("at-home\n", "utf-8")
    (tmp_path / "file").write_text("in-file\n", "utf-8")
    named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file")}
    assert auth_token({}) == "at-home"
    assert auth_token(named) == "in-file"
    assert auth_token({**named, "RAY_AUTH_TOKEN": "given"}) == "given"
    assert auth_token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_MODE": "disabled"}) is None
    with pytest.raises(UserError, match="cannot read"):
        auth_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})


def test_log_goes_to_stderr_and_the_summary_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    printer = _LogPrinter()
    for text in ["first\nsec", "ond\n", '{"objects": 3}', "\n"]:
        printer.feed(text)
    printer.close()
    out, err = capsys.readouterr()
    assert (out, err) == ('{"objects": 3}\n', "first\nsecond\n")


def test_log_that_begins_anew_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    printer = _LogPrinter()
    printer.feed("one\ntwo\nth")
    printer.restart()
    for text in ["one\n", "two\nthree\n", "four\n"]:
        printer.feed(text)
    printer.close()
    assert capsys.readouterr().err == "one\ntwo\nthree\nfour\n"

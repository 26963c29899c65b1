"""What `tubelet submit` sends: places that other nodes reach, and nothing of this machine alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ray.job_submission import JobDetails
from tubelet.config import UserError, load_settings
from tubelet_jobs import given_environment
from tubelet_jobs.common import _runtime_env
from tubelet_jobs.environment import forwarded, make_paths_absolute
from tubelet_jobs.remote.client import _LogPrinter, _pack, _reason, auth_token, check_address
from tubelet_jobs.remote.listing import find_job, mlflow_link
from tubelet_jobs.remote.plan import JobPlan, plan_job
from tubelet_jobs.submit import SubmitOptions

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


def test_servers_named_localhost_are_noted() -> None:
    """Whether the nodes mean the same by it is asked when the cluster is there."""
    argv = [*TRAIN, "--tracking-uri", "http://localhost:5000"]
    assert plan_job(argv, env={}).loopback == ("--tracking-uri http://localhost:5000",)
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_ENDPOINT_URL_S3": "http://[::1]:9000"}
    assert plan_job([*TRAIN, *SERVER], env=env).loopback == (
        "AWS_ENDPOINT_URL http://127.0.0.1:9000",
        "AWS_ENDPOINT_URL_S3 http://[::1]:9000",
    )
    elsewhere = {"AWS_ENDPOINT_URL": "http://10.0.0.1:9000", "MLFLOW_TRACKING_URI": "http://localhost:1"}
    assert plan_job([*TRAIN, *SERVER], env=elsewhere).loopback == ()  # the argument wins over the variable
    assert plan_job([*TRAIN, "--tracking-uri", "postgresql://localhost/m"], env={}).loopback


def test_a_password_in_an_argument_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        plan_job([*TRAIN, "--tracking-uri", "http://me:hidden@mlflow:5000"], env={})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "right"),
    [
        ("ray://head:10001", "http://head:8265"),
        ("ray://10.0.0.5:10001", "http://10.0.0.5:8265"),
        ("head:6379", "http://head:8265"),
        ("auto", "http://auto:8265"),
        ("http://", "http://HEAD:8265"),
    ],
)
def test_an_address_of_another_kind_is_refused_with_the_right_form(address: str, right: str) -> None:
    with pytest.raises(UserError, match="dashboard") as caught:
        check_address(address)
    assert f"--address {right}" in str(caught.value)


def test_a_packet_of_variables_is_its_owners_alone_and_sets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not given_environment.is_given()
    package = given_environment.write({"TUBELET_TEST_GIVEN": "a secret"}, tmp_path)
    (file,) = package.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TUBELET_TEST_GIVEN", "")
    assert given_environment.is_given()
    given_environment.take()
    assert os.environ["TUBELET_TEST_GIVEN"] == "a secret"


def test_nothing_of_the_environment_is_in_a_runtime_env(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray writes what is in there into logs that everybody on a node may read."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    assert "hidden" not in repr(_runtime_env(tmp_path))
    assert "hidden" in (tmp_path / "tubelet_environment/variables.json").read_text("utf-8")


def test_jobs_are_found_by_id_name_or_beginning() -> None:
    found = find_job(_Jobs(), "http://h:8265", "nightly")  # type: ignore[arg-type]
    assert found.submission_id == "nightly-bb"  # the newest
    assert found.dashboard == "http://h:8265/#/jobs/nightly-bb"
    assert found.seconds == 60
    assert find_job(_Jobs(), "", "nightly-aa").status == "SUCCEEDED"  # type: ignore[arg-type]
    assert find_job(_Jobs(), "", "tubelet-train-1").job == "train"  # type: ignore[arg-type]
    for name, said in (("tubelet-train", "2 jobs begin"), ("x", "no job 'x'")):
        with pytest.raises(UserError, match=said):
            find_job(_Jobs(), "http://h:8265", name)  # type: ignore[arg-type]


class _Jobs:
    """What the job server answers."""

    def list_jobs(self) -> list[JobDetails]:
        rows = [
            ("nightly-bb", "RUNNING", {"tubelet.job": "label", "tubelet.name": "nightly"}, 3_000),
            ("nightly-aa", "SUCCEEDED", {"tubelet.job": "label", "tubelet.name": "nightly"}, 2_000),
            ("tubelet-train-1", "FAILED", {"tubelet.job": "train"}, 1_000),
            ("tubelet-train-2", "FAILED", {"tubelet.job": "train"}, 1_500),
            (None, "RUNNING", None, None),  # a driver that nobody submitted
        ]
        return [
            JobDetails(
                type="SUBMISSION" if name else "DRIVER",
                submission_id=name,
                status=status,
                entrypoint="python x",
                metadata=metadata,
                start_time=start,
                end_time=start and start + 60_000,
            )
            for name, status, metadata, start in rows
        ]


def test_link_to_the_run_is_taken_from_the_log() -> None:
    log = "plan\nMLflow run: http://mlflow:5000/#/experiments/1/runs/abc\nstep 1\n"
    assert mlflow_link(log) == "http://mlflow:5000/#/experiments/1/runs/abc"
    assert mlflow_link("step 1\n") is None


@pytest.mark.parametrize("package", ["./mine.whl", "-r list", "git+https://token@host/mine"])
def test_packages_that_nodes_cannot_fetch_are_refused(package: str) -> None:
    with pytest.raises(UserError, match="pip"):
        load_settings(SubmitOptions, {"job": ("index",), "address": "http://h:8265", "pip": (package,)})


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
    plan = plan_job(["index", "s3://b/v", "--out", "s3://b/m", f"--listing={labels}"], env={})
    assert plan.argv[-1] == "--listing=files/listing.csv"


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


def test_what_pip_could_not_install_is_said() -> None:
    message = (
        "runtime_env setup failed: Failed to set up runtime environment.\nTraceback (most recent calls):\n"
        "Last 50 lines of stdout:\n    ERROR: Could not find a version of toolz==999.0 (from versions: 1.0)\n"
        "    ERROR: No matching distribution found for toolz==999.0\n"
    )
    first = "runtime_env setup failed: Failed to set up runtime environment."
    assert _reason(message) == f"{first} ERROR: No matching distribution found for toolz==999.0"
    assert (_reason(f"{first}\nmore"), _reason(None)) == (first, "no reason given")

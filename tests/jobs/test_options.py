"""Options come from the settings they fill: names, defaults and checks are stated once."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from tubelet.config import Option, Settings, UserError, load_settings
from tubelet.decode_limits import DecodeLimits
from tubelet.video import Limits
from tubelet_jobs.app import JOBS, job_command
from tubelet_jobs.bench import BenchCommand
from tubelet_jobs.options import command_line, settings_class, typer_function
from typer.testing import CliRunner

# Names that scripts rely on. A new option is added here; none goes.
NAMES = {
    "bench": "kind more_peers --vs --full --json --videos --driver --plan --hours --prices",
    "index": "src --out --labels --listing --split --duplicates --include --update --workers --max-error-rate"
    " --retry-errors --tracking-uri --anonymous --single-writer --break-lock --deadline --max-frames --memory"
    " --sandbox --ray-address --dry-run",
    "prepare": "source --out --short-side --gop --crf --segments --include --max-error-rate --retry-errors"
    " --workers --ray-address --anonymous --single-writer --break-lock --deadline --max-frames --memory"
    " --sandbox --dry-run",
    "train": "overrides --manifest --out --recipe --init --resume --features --name --experiment"
    " --ray-address --tracking-uri"
    " --anonymous --single-writer --break-lock --deadline --max-frames --memory --sandbox --dry-run",
    "evaluate": "--model --manifest --split --views --out --batch --workers --max-error-rate --seed --ablate"
    " --learning-curve --features --name"
    " --experiment --ray-address --tracking-uri --anonymous --deadline --max-frames --memory"
    " --sandbox --dry-run",
    "label": "source --model --out --include --topk --scores --embeddings --embeddings-type --views --window"
    " --stride --max-error-rate --retry-errors --new-version --export --export-formulas --review-limit"
    " --workers --predictors"
    " --gpus --name --experiment --ray-address --tracking-uri --anonymous --single-writer --break-lock"
    " --deadline --max-frames --memory --sandbox --dry-run",
    "embed": "source --model --out --include --clips --per-frame --type --frames --stride --size"
    " --max-error-rate --retry-errors --workers --predictors --gpus --tracking-uri --anonymous"
    " --single-writer --break-lock --ray-address --deadline --max-frames --memory --sandbox --dry-run",
    "review": "predictions other --out --limit --frames --height --queue --manifest --presign --anonymous"
    " --host --port --corrections --dry-run --serve",
    "forget": "uris --manifest --out --tracking-uri --anonymous --single-writer --break-lock --dry-run",
    "recipes": "name --keys",
    "submit": "job --address --name --wait --no-wait --pip --shared-fs --dry-run",
    "jobs": "action name --address --follow",
    "demo": "overrides --videos --labels --split --out --recipe --tracking-uri --loop",
}


class Place(Settings):
    anonymous: Annotated[bool, Option()] = False
    """Read without credentials."""


class Example(Settings):
    """Of every kind."""

    src: Annotated[str, Option(argument=True, metavar="SRC")]
    """Where ``from``."""
    names: Annotated[tuple[str, ...], Option(flag="--name")] = ()
    count: Annotated[int, Option(), Field(ge=1)] = 3
    kind: Annotated[Literal["one", "two"], Option()] = "one"
    server: Annotated[str | None, Option(envvar="EXAMPLE_SERVER")] = None
    hidden: float = 1.5
    place: Place = Place()


def _run(*args: str, **env: str) -> tuple[Any, Example | None]:
    got: list[Example] = []
    app = typer.Typer(rich_markup_mode=None)

    def job(config: Example) -> None:
        """Do it."""
        got.append(config)

    app.command()(typer_function(job, Example))
    return CliRunner().invoke(app, args, env=env), got[0] if got else None


def test_values_reach_the_settings() -> None:
    assert _run("x")[1] == Example(src="x")
    given = ["x", "--name", "a", "--name", "b", "--count", "5", "--kind", "two", "--anonymous"]
    expected = Example(
        src="x", names=("a", "b"), count=5, kind="two", server="here", place=Place(anonymous=True)
    )
    assert _run(*given, EXAMPLE_SERVER="here")[1] == expected


def test_a_bad_value_is_a_user_error_and_a_wrong_type_is_wrong_usage() -> None:
    done, _ = _run("x", "--count", "0")
    assert isinstance(done.exception, UserError)
    assert "count" in str(done.exception)
    assert isinstance(_run("x", "--kind", "three")[0].exception, UserError)
    assert _run("x", "--count", "many")[0].exit_code == 2
    assert _run()[0].exit_code == 2
    assert _run("x", "--hidden", "2")[0].exit_code == 2


def test_help_tells_what_the_settings_say() -> None:
    said = " ".join(_run("--help")[0].output.split())
    for text in ("Do it.", "Where `from`.", "--kind one|two", "[default: 3]", "EXAMPLE_SERVER"):
        assert text in said


def test_the_command_line_of_settings_gives_them_again() -> None:
    settings = Example(src="a b", names=("x", "y"), count=4, place=Place(anonymous=True))
    words = shlex.split(command_line("job", settings))
    assert words[:2] == ["tubelet", "job"]
    assert _run(*words[2:])[1] == settings
    assert command_line("job", Example(src="s")) == "tubelet job s"


@pytest.mark.parametrize("job", ["index", "label", "evaluate", "train"])
def test_every_job_that_decodes_takes_limits(job: str) -> None:
    cls = settings_class(importlib.import_module(f"tubelet_jobs.{job}").command)
    (limits,) = (field.default for field in cls.model_fields.values() if field.annotation is DecodeLimits)
    assert limits.limits() == Limits()
    given = load_settings(DecodeLimits, {"deadline_s": 5, "max_frames": 7, "memory": "512MiB"})
    assert given.limits() == Limits(5.0, 512 << 20, 7, fit_memory=False)
    for bad in ({"memory": "much"}, {"memory": "0"}, {"deadline_s": 0}, {"max_frames": 0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            load_settings(DecodeLimits, bad)


@pytest.mark.parametrize("job", JOBS)
def test_names_of_options_stay(job: str) -> None:
    names: set[str] = set()
    for param in job_command(job).params:
        options = [*param.opts, *param.secondary_opts] if param.opts[0].startswith("-") else [param.name]
        names.update(options)
    assert names - {"--help"} == set(NAMES[job].split())


@pytest.mark.parametrize(
    "given", [("--vs", "a", "b"), ("--vs", "a", "--vs", "b"), ("--vs", "a,b")], ids=" ".join
)
def test_peers_of_a_bench_may_be_given_in_any_way(given: tuple[str, ...]) -> None:
    got: list[BenchCommand] = []
    app = typer.Typer()
    app.command()(typer_function(got.append, BenchCommand))
    assert CliRunner().invoke(app, ["decode", *given]).exit_code == 0
    assert got[0].peers(["b", "a", "c"]) == ["b", "a"]


def test_help_and_refusals_load_no_torch_and_no_ray() -> None:
    """They are slow to load, and a process that ends while they start may end badly."""
    code = (
        "import sys\nfrom tubelet_jobs.app import JOBS, job_command\n"
        "for job in ('bench', 'index', 'train', 'review', 'submit', 'demo'): job_command(job)\n"
        "print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_jobs_take_settings() -> None:
    from tubelet_jobs import index

    found = settings_class(index.command)
    assert found is not None
    assert found.__name__ == "IndexOptions"

"""The command line's jobs and options, as typer parses them."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from tubelet._version import __version__
from typer.core import TyperGroup

from tubelet_jobs.options import settings_class, typer_function


class Job(NamedTuple):
    """A job in the list of jobs, and how to go on when it was stopped."""

    summary: str
    kept: str = ""


# Each job is a module with a function `command`: its docstring is the help, its settings are the options. The
# module is imported when the job is named.
JOBS: dict[str, Job] = {
    "bench": Job("Measure against the best peers and against the limit."),
    "index": Job(
        "List the videos of a bucket, look into each, and write the manifest.", "the same command goes on"
    ),
    "prepare": Job("Copy the videos of a manifest, small and cheap to seek in.", "the same command goes on"),
    "train": Job(
        "Fine-tune a ViViT on the labelled videos of a manifest.",
        "what was saved is kept; go on with --resume",
    ),
    "evaluate": Job("Measure a model on the labelled videos of a split."),
    "label": Job("Label every video of a bucket, one row per video.", "the same command goes on"),
    "embed": Job("Embed every video of a bucket, one row per video.", "the same command goes on"),
    "review": Job("Make one HTML page of what was labelled."),
    "forget": Job("Take videos out of a manifest and of what was made of it.", "the same command goes on"),
    "recipes": Job("List the recipes of train, show one, explain its settings."),
    "submit": Job("Run a job on a Ray cluster."),
    "jobs": Job("List the jobs of a Ray cluster, look at one, read its log, stop it."),
    "demo": Job("Index, train, evaluate, label and review, on this machine."),
}


class _Jobs(TyperGroup):
    """The jobs as subcommands, each imported when it is called for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(JOBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return job_command(cmd_name) if cmd_name in JOBS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, job.summary) for name, job in JOBS.items()])


def job_command(name: str) -> Any:
    """The command of a job as typer parses it."""
    function = importlib.import_module(f"tubelet_jobs.{name}").command
    single = typer.Typer(add_completion=False, **_LOOK)
    single.command(name)(typer_function(function, settings_class(function)))
    return typer.main.get_command(single)


_LOOK: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="tubelet",
    help="Turn a bucket of videos into labels: index, fine-tune ViViT, label, review.",
    no_args_is_help=True,
    cls=_Jobs,
    **_LOOK,
)


def _version(value: bool) -> None:
    if value:
        print(f"tubelet {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass

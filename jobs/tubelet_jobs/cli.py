"""The ``tubelet`` command.

Exit status: 0 done, 1 failed, 2 wrong usage. An error that a user can cause is one or two lines.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Annotated

import typer
from tubelet._version import __version__
from tubelet.config import UserError

from tubelet_jobs.logs import log_to_stderr

# One module a job; each has a function `command` whose docstring is the help text.
JOBS: tuple[str, ...] = ("bench", "index", "train", "evaluate", "label", "review", "submit", "demo")

app = typer.Typer(
    name="tubelet",
    help="Turn a bucket of videos into labels: index, fine-tune ViViT, label, review.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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


for _name in JOBS:
    app.command(_name)(importlib.import_module(f"tubelet_jobs.{_name}").command)


def main() -> None:
    """Entry point: runs the job named on the command line and turns errors into an exit status."""
    try:
        with log_to_stderr(debug=bool(os.environ.get("TUBELET_DEBUG"))):
            app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("TUBELET_DEBUG"):
            traceback.print_exc()
        text = (str(error).strip().splitlines() or [""])[0]
        print(
            f"error: {type(error).__name__}: {text}\n(set TUBELET_DEBUG=1 for the traceback)", file=sys.stderr
        )
        sys.exit(1)
    finally:
        # When the interpreter ends, Ray prints what it held back (a worker that died, say): the summary must
        # stay the last line of stdout.
        sys.stdout = sys.stderr


if __name__ == "__main__":
    main()

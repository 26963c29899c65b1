"""The ``tubelet`` command.

Exit status: 0 done, 1 failed, 2 wrong usage. An error that a user can cause is one or two lines.
"""

from __future__ import annotations

import importlib
import os
import re
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
    # As -P, for every Python that is started below: Ray's own processes, multiprocessing's children.
    os.environ["PYTHONSAFEPATH"] = "1"
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
        print(f"error: {_in_a_line(error)}\n(set TUBELET_DEBUG=1 for the traceback)", file=sys.stderr)
        sys.exit(1)
    finally:
        # When the interpreter ends, Ray prints what it held back (a worker that died, say): the summary must
        # stay the last line of stdout.
        sys.stdout = sys.stderr


# An error of ours in the pages of text that Ray makes of what was raised in a worker.
_RAISED_IN_WORKER = re.compile(r"^tubelet[\w.]*\.(\w+Error): (.+)$", re.MULTILINE)


def _in_a_line(error: Exception) -> str:
    found = _RAISED_IN_WORKER.search(str(error))
    if found:
        return found[2] if found[1] == UserError.__name__ else f"{found[1]}: {found[2]}"
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


if __name__ == "__main__":
    main()

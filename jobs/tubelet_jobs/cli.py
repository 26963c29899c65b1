"""The ``tubelet`` command: its exit status, its errors, its end.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 after SIGINT, 143 after SIGTERM. An error that a user can
cause is one or two lines. What takes time to import is imported once signals are heard.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from tubelet_jobs import given_environment
from tubelet_jobs.stopping import Signals, StoppedError, end


def main() -> NoReturn:
    """Entry point: runs the job named on the command line and ends the process with its exit status."""
    # As -P, for every Python that is started below: Ray's own processes, multiprocessing's children.
    os.environ["PYTHONSAFEPATH"] = "1"
    given_environment.take()  # of a submitted job; options read their defaults from it
    end(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` names; errors become a line on stderr. Returns the exit status."""
    debug = bool(os.environ.get("TUBELET_DEBUG"))
    with Signals() as signals:
        status, line = _outcome(argv, signals, debug=debug)
        if line:
            from tubelet.redaction import redacted

            print(f"error: {redacted(line)}", file=sys.stderr, flush=True)
    return status


def _outcome(argv: Sequence[str], signals: Signals, *, debug: bool) -> tuple[int, str]:
    """Exit status, and what to say of it."""
    status, line = 1, ""
    try:
        _run_job(list(argv), debug=debug)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except StoppedError as stopped:
        return 128 + stopped.number, str(stopped)
    except BaseException as error:
        status, line = _status_of(error), _line_of(error, debug=debug)
    finally:
        signals.close()
    number = signals.number or (signal.SIGTERM if status == signal.SIGTERM else None)
    if number is None:
        return status, line
    return 128 + number, f"stopped by {number.name}{_how_to_go_on(argv)}"


def _run_job(argv: list[str], *, debug: bool) -> None:
    from tubelet_jobs.app import app
    from tubelet_jobs.logs import log_to_stderr

    with log_to_stderr(debug=debug):
        app(argv, prog_name="tubelet")


def _status_of(error: BaseException) -> int:
    from tubelet.config import UsageError

    return 2 if isinstance(error, UsageError) else 1


def _line_of(error: BaseException, *, debug: bool) -> str:
    from tubelet.config import UserError

    if isinstance(error, UserError):
        return str(error)
    if debug:
        from tubelet.redaction import redacted

        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    return f"{_in_a_line(error)}\n(set TUBELET_DEBUG=1 for the traceback)"


# An error of ours in the pages of text that Ray makes of what was raised in a worker.
_RAISED_IN_WORKER = re.compile(r"^tubelet[\w.]*\.(\w+Error): (.+)$", re.MULTILINE)


def _in_a_line(error: BaseException) -> str:
    found = _RAISED_IN_WORKER.search(str(error))
    if found:
        return found[2] if found[1] == "UserError" else f"{found[1]}: {found[2]}"
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _how_to_go_on(argv: Sequence[str]) -> str:
    from tubelet_jobs.app import JOBS

    kept = JOBS[argv[0]].kept if argv and argv[0] in JOBS else ""
    return f": {kept}" if kept else ""


if __name__ == "__main__":
    main()

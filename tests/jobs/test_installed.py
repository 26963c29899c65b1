"""The jobs from an installed wheel, without the clone, in a folder whose modules nobody may import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.hostile import HostileFolder
from support.training import moving_square, write_video

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

_PREDICT = """
import sys, mlflow, pandas
assert not [p for p in sys.path if p in ("", sys.argv[3])]
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
print(model.predict(pandas.DataFrame({"uri": sys.argv[4:]})).to_json(orient="records"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building leaves folders beside the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for name in ("pipeline", "jobs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    (source / "pipeline/left_behind").mkdir(exist_ok=True)  # as by another branch: no package
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(target), str(source)]
    subprocess.run(command, check=True)
    return next(target.glob("*.whl"))


def _environment(folder: Path, wheel: Path | None) -> Path:
    """A fresh environment with what tubelet stands on, and ``wheel``; its ``bin``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(
        subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    )
    # A folder named in a .pth file: its packages, and not its own .pth files, which know the clone.
    (packages / "stands_on.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    if wheel:
        install = ["install", "-q", "--no-deps", "--no-index", str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    return folder / "bin"


def test_wheel_holds_the_two_packages_and_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tubelet", "tubelet_jobs"}
    recipes = {
        f"tubelet_jobs/recipes/{path.name}" for path in (ROOT / "jobs/tubelet_jobs/recipes").glob("*.yaml")
    }
    assert len(recipes) > 10
    assert (
        recipes | {"tubelet/py.typed", "tubelet/review/static/page.html.j2", "tubelet/review/static/main.js"}
        <= names
    )
    code = {
        f"{package}/{path.relative_to(ROOT / top / package)}"
        for top, package in (("pipeline", "tubelet"), ("jobs", "tubelet_jobs"))
        for path in (ROOT / top / package).rglob("*.py")
    }
    assert code == {name for name in names if name.endswith(".py")}


def test_all_jobs_in_a_hostile_folder(wheel: Path, tmp_path: Path) -> None:
    hostile = HostileFolder(tmp_path / "work")
    for i in range(12):
        label, direction = [("left", -1), ("right", 1)][i % 2]
        write_video(hostile.path / f"videos/{label}/{i}.mp4", moving_square(direction, 5 * i))
    bin_folder = _environment(tmp_path / "env", wheel)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    env |= {"TUBELET_DEBUG": "1", "HOME": str(tmp_path), "PATH": f"{bin_folder}:{env['PATH']}"}

    def run(*command: str) -> Any:
        done = subprocess.run(
            command, cwd=hostile.path, env=env, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert not hostile.imported, (command, done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    tubelet = str(bin_folder / "tubelet")
    where = "import json, tubelet, tubelet_jobs; print(json.dumps([tubelet.__file__, tubelet_jobs.__file__]))"
    installed = run(str(bin_folder / "python"), "-P", "-c", where)
    assert all(Path(path).is_relative_to(tmp_path / "env") for path in installed)

    # Paths are relative, as people write them: what leaves the driver must not be.
    split = "train=0.6,val=0.2,test=0.2"
    indexed = run(tubelet, "index", "videos", "--out", "m", "--labels", "folders", "--split", split)
    assert (indexed["ok"], indexed["errors"]) == (12, 0)
    small = ["model=tiny-8x2-model1", "size=32", "short_side=36", "frames=8", "batch=4", "workers=1"]
    trained = run(
        tubelet, "train", "--manifest", "m", "--out", "run", *small, "max_steps=2", "warmup_steps=1"
    )
    assert trained["steps"] == 2
    scored = run(
        tubelet, "evaluate", "--model", "run", "--manifest", "m", "--views", "1x1", "--out", "scores"
    )
    assert scored["objects"] == indexed["splits"]["test"]
    labelled = run(tubelet, "label", "videos", "--model", "run", "--out", "labels")
    assert (labelled["ok"], labelled["errors"]) == (12, 0)

    # The logged model has its own code: an environment without tubelet labels the same.
    other = _environment(tmp_path / "other", None)
    model = f"models:/{trained['model_name']}/{trained['model_version']}"
    tracking, work = f"sqlite:///{hostile.path}/mlflow.db", str(hostile.path)
    for python in (bin_folder / "python", other / "python"):
        predict = [str(python), "-P", "-c", _PREDICT, tracking, model, work]
        rows = run(*predict, "videos/left/0.mp4", "videos/right/1.mp4")
        assert [row["label"] in ("left", "right") for row in rows] == [True, True], rows

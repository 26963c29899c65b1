"""SIGINT and SIGTERM in every job: one line, the status, nothing left running, no lock, no folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support import wait_until
from support.labelling import CLASSES, tiny_bundle, write_video
from tubelet import storage
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import PredictionSink
from tubelet.storage.lock import OutputLock
from tubelet_jobs.app import JOBS

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
CACHE = f"torchinductor_{getpass.getuser()}"
WORK = 300  # objects of a job: more than it does before the signal comes


class Job:
    """A job as a process of its own, with a folder for whatever it puts into the system's temporary one."""

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.log = folder / "log"
        # Where TMPDIR is deep, as it is here, the paths of Ray's sockets get too long.
        env = {"RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-", dir="/tmp"), **env}
        self.ray = Path(env["RAY_TMPDIR"])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tubelet_jobs", *args],
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(self.temporary), **env},
            )
        self._seen: set[psutil.Process] = set()

    def descendants(self) -> set[psutil.Process]:
        """What it has started so far, as far as seen."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))
        return self._seen

    def wait_for(self, condition: Callable[[Job], bool]) -> None:
        """Until ``condition`` holds; it must come to hold before the job ends."""

        def reached() -> bool:
            assert self.process.poll() is None, self.log.read_text("utf-8")
            return condition(self)

        wait_until(reached, 400)

    def stop(self, number: signal.Signals, within_s: float = 60, *, to_group: bool = False) -> str:
        """Send the signal; checks what every job owes. Returns the line that it ends with.

        Args:
            to_group: to all that it has started as well, as terminals, ``timeout`` and systemd do.
        """
        started = self.descendants()
        if to_group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        sent_s = time.monotonic()
        status = self.process.wait(240)
        took_s = time.monotonic() - sent_s
        said = self.log.read_text("utf-8")
        assert status == STATUS[number], said
        assert took_s < within_s, f"{took_s:.0f} s"
        assert "Traceback" not in said
        assert "Exception ignored" not in said
        assert "*** SIG" not in said, "native code tells of the signal, too"
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, said
        assert f"stopped by {number.name}" in lines[0]
        wait_until(lambda: not any(_runs(process) for process in started), 20)
        # Torch keeps its compiler's cache.
        assert [path.name for path in self.temporary.iterdir() if path.name != CACHE] == []
        shutil.rmtree(self.ray, ignore_errors=True)
        return lines[0]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _decodes(job: Job) -> bool:
    """It has come to the videos: their decoders run."""
    for process in job.descendants():
        try:
            if any("tubelet.video.child" in word for word in process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False


def _said(job: Job, pattern: str) -> bool:
    return re.search(pattern, job.log.read_text("utf-8")) is not None


def _corpus(folder: Path, count: int = WORK) -> Path:
    """One tiny video under ``count`` names."""
    first = write_video(folder / "first.mp4", 0)
    for number in range(count - 1):
        os.link(first, folder / f"{number:04d}.mp4")
    return folder


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_index_stops(tmp_path: Path, number: signal.Signals) -> None:
    source, out = str(_corpus(tmp_path / "videos")), str(tmp_path / "manifest")
    job = Job(tmp_path, "index", source, "--out", out, "--workers", "2")
    job.wait_for(_decodes)
    assert job.stop(number) == f"error: stopped by {number.name}: the same command goes on"
    with OutputLock(out):
        pass  # nobody holds it


def test_the_end_is_not_that_of_the_interpreter() -> None:
    """Native code that aborts while a process ends, as threads of Arrow and Torch may, changes no status."""
    code = (
        "import ctypes, sys\nfrom tubelet_jobs import cli\n"
        "libc = ctypes.CDLL(None)\nlibc.__cxa_atexit(libc.abort, None, None)\n"
        "sys.argv = ['tubelet', '--version']\n"
    )
    ends = {"sys.exit(0)": -signal.SIGABRT, "cli.main()": 0}
    for end, status in ends.items():
        command = [sys.executable, "-c", code + end]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == status, done.stderr
    assert done.stdout.startswith("tubelet ")


def test_the_end_takes_no_native_client_down() -> None:
    """What waits for native threads, or takes away what they use, may abort; the process just ends."""
    code = (
        "import os, sys\nfrom pyarrow.fs import S3FileSystem\nfrom tubelet_jobs import cli, stopping\n"
        "def last(status):\n"
        "    S3FileSystem(anonymous=True, region='us-east-1')\n"
        "    os.write(1, b'alive')\n    os._exit(status)\n"
        "S3FileSystem(anonymous=True, region='us-east-1')\n"
        "stopping._exit = last\nsys.argv = ['tubelet', '--version']\ncli.main()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.endswith("alive"), done.stderr
    assert done.returncode == 0


def test_a_signal_at_the_very_end_changes_no_status() -> None:
    code = (
        "import atexit, os, signal, sys\nfrom tubelet_jobs import cli\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['tubelet', '--version']\ncli.main()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_signal_that_a_destructor_swallows_is_heard_again() -> None:
    code = (
        "import signal, sys, time\nfrom tubelet_jobs.stopping import Interrupted, Signals\n"
        "class Deaf:\n    def __del__(self): signal.raise_signal(signal.SIGTERM)\n"
        "with Signals() as signals:\n"
        "    try:\n        Deaf()\n        time.sleep(30)\n"
        "    except Interrupted: print(signals.number.name)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("SIGTERM\n", "", 0)


@dataclass(frozen=True)
class World:
    """What jobs need: many videos, rows of them, a manifest of labelled ones, a model."""

    many: str
    predictions: str
    manifest: str
    model: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    for number, name in enumerate(CLASSES):
        for i in range(20):
            write_video(root / "labelled" / name / f"{i}.mp4", number * 20 + i)
    manifest, split = str(root / "manifest"), "train=0.5,val=0,test=0.5"
    given = {"src": str(root / "labelled"), "out": manifest, "labels": "folders", "split": split}
    index_corpus(IndexConfig.model_validate(given))
    many = _corpus(root / "many", 500)
    return World(str(many), _predictions(many, root / "rows"), manifest, str(tiny_bundle(root / "model")))


def _predictions(videos: Path, out: Path) -> str:
    """Rows as `label` leaves them, of all ``videos``."""
    info = storage.stat(videos / "first.mp4")
    assert info is not None
    rows = [
        {"key": path.stem, "window": 0, "uri": str(path), "etag": info.etag, "status": "ok", "label": "left"}
        for path in videos.iterdir()
    ]
    schema = RowShape().schema()
    sink = PredictionSink(OutputFiles(str(out)), schema)
    sink.add(table_of([row | {"score": 0.5} for row in rows], schema))
    sink.close()
    return str(out)


TRAIN = ("batch=8", "max_steps=5000", "frames=8", "size=32", "short_side=36", "workers=1")
# Job -> its arguments (MANY, MANIFEST, MODEL and OUT are filled in), and what it says once it is at
# work; None where its work is over before that line is due, and the decoders tell.
STOPPED: dict[str, tuple[tuple[str, ...], str | None]] = {
    "label": (("MANY", "--model", "MODEL", "--out", "OUT", "--review-limit", "0"), "label: [1-9]"),
    "embed": (("MANY", "--model", "MODEL", "--out", "OUT"), "embed: [1-9]"),
    "prepare": (("MANY", "--out", "OUT"), "prepare: [1-9]"),
    "train": (("--manifest", "MANIFEST", "--out", "OUT", *TRAIN), "train: [1-9]"),
    "evaluate": (("--manifest", "MANIFEST", "--model", "MODEL"), "evaluate .* on "),
    "review": (("PREDICTIONS", "--out", "OUT/page.html", "--limit", "500"), None),
    "demo": (("--out", "OUT"), "tubelet train"),
    "bench": (("decode", "--vs", "pyav"), "bench decode"),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", STOPPED)
def test_every_job_stops(world: World, tmp_path: Path, name: str, number: signal.Signals) -> None:
    _stop_at_work(world, tmp_path, name, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["label", "train", "evaluate"])
def test_jobs_stop_when_their_ray_is_stopped_with_them(
    world: World, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    _stop_at_work(world, tmp_path, name, number, to_group=True)


def _stop_at_work(
    world: World, tmp_path: Path, name: str, number: signal.Signals, *, to_group: bool = False
) -> None:
    out = str(tmp_path / "out")
    places = {"MANY": world.many, "PREDICTIONS": world.predictions, "MANIFEST": world.manifest}
    places |= {"MODEL": world.model, "OUT": out, "OUT/page.html": f"{out}/page.html"}
    args, at_work = STOPPED[name]
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    job = Job(tmp_path, name, *(places.get(word, word) for word in args), MLFLOW_TRACKING_URI=tracking)
    try:
        job.wait_for(lambda job: _decodes(job) if at_work is None else _said(job, at_work))
        job.stop(number, within_s=150, to_group=to_group)
    finally:
        job.process.terminate()
    if name in ("label", "embed", "prepare", "train"):
        with OutputLock(out):
            pass  # nobody holds it
    if name == "review":
        assert not Path(out).exists() or not list(Path(out).iterdir()), "half a page is none"


def test_no_job_is_left_out() -> None:
    elsewhere = {"index", "submit"}  # above, and where there is a cluster (test_submit.py)
    # Two print what is there; `forget` does what was left when it is run again (test_forget.py).
    at_once = {"jobs", "recipes", "forget"}
    assert JOBS.keys() - at_once == STOPPED.keys() | elsewhere

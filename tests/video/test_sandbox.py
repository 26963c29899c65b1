"""The sandbox: whatever happens in the child costs one answer and one child."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from support import payloads
from support.hostile import HostileFolder
from support.payloads import TRIGGER
from support.video import EveryFrame, make_video
from support.video_sources import Broken, Hang, gone
from tubelet.video import (
    Clock,
    DecodeError,
    DecoderStartError,
    Dense,
    Frames,
    Limits,
    Random,
    Sandbox,
    ShortSide,
    Uniform,
    VideoInfo,
    View,
    decode_views,
    probe,
)
from tubelet.video.reply import _INFO, Reply

VIEWS = [View(Uniform(8), ShortSide(64, 48)), View(Dense(4, 2, Random(0.3)), ShortSide(48, 48))]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    options = {"preset": "veryfast", "bf": "3"}
    return make_video(tmp_path_factory.mktemp("sandbox") / "a.mp4", options=options)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


def test_answers_equal_those_of_this_process(sandbox: Sandbox, video: Path) -> None:
    here, there = decode_views(video, VIEWS), sandbox.decode_views(video, VIEWS)
    assert there.info == here.info == sandbox.probe(video) == probe(video)
    for a, b in zip(here.clips, there.clips, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.times_s, b.times_s)
        assert b.frames.flags.writeable


def test_clips_outlive_later_requests_and_the_sandbox(video: Path) -> None:
    with Sandbox() as box:
        first = box.decode_views(video, VIEWS)
        kept = [clip.frames.copy() for clip in first.clips]
        for _ in range(3):
            box.decode_views(video, [View(Frames((1,)), ShortSide(32, 32))])
    for clip, copy in zip(first.clips, kept, strict=True):
        np.testing.assert_array_equal(clip.frames, copy)


def test_memory_is_used_again_only_when_nobody_looks_at_it(sandbox: Sandbox, video: Path) -> None:
    """Whatever of a clip is kept (a slice of a slice) keeps its memory; sizes come and go."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(24):
        view = View(Frames((number, number + 1)), ShortSide(32 + 16 * (number % 3)))
        clip = sandbox.decode_views(video, [view]).clips[0]
        np.testing.assert_array_equal(clip.frames, decode_views(video, [view]).clips[0].frames)
        if number % 2:
            part = clip.frames[1][2:].transpose(2, 0, 1)
            kept.append((part, part.copy()))
    for part, copy in kept:
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize(
    "make", [Path.read_bytes, lambda p: io.BytesIO(p.read_bytes()), str], ids=["bytes", "file", "path"]
)
def test_every_kind_of_source(sandbox: Sandbox, video: Path, make) -> None:
    assert sandbox.probe(make(video)).frames == 60


@pytest.mark.parametrize(
    ("source", "code"),
    [(Hang, "timeout"), (Broken, "io_error"), (gone, "not_found")],
)
def test_a_bad_source_costs_one_answer(video: Path, source, code: str) -> None:
    with Sandbox(Limits(deadline_s=8, memory_bytes=1 << 30)) as box:
        assert box.probe(video).frames == 60
        begin_s = time.monotonic()
        with pytest.raises(DecodeError) as caught:
            box.decode_views(source, VIEWS)
        assert caught.value.code == code
        assert time.monotonic() - begin_s < 30
        assert box.probe(video).frames == 60


@pytest.mark.parametrize(
    "limits",
    [Limits(max_frames=10), Limits(max_pixels=1000), Limits(max_object_bytes=1000)],
    ids=["frames", "pixels", "bytes"],
)
def test_budgets_hold_in_the_child_and_here(video: Path, limits: Limits) -> None:
    for call in (
        lambda: decode_views(video, VIEWS, limits=limits),
        lambda: Sandbox(limits).decode_views(video, VIEWS),
    ):
        with pytest.raises(DecodeError) as caught:
            call()
        assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("payload", "code"), [("hang", "timeout"), ("crash", "crash"), ("bomb", "out_of_memory")]
)
def test_a_bad_file_costs_one_answer(
    video: Path, taken_over: Callable[..., None], payload: str, code: str
) -> None:
    taken_over(payload)
    with Sandbox(Limits(deadline_s=4, memory_bytes=1 << 30)) as box:
        assert box.probe(video).frames == 60
        with pytest.raises(DecodeError) as caught:
            box.decode_views(TRIGGER, VIEWS)
        assert caught.value.code == code
        assert box.probe(video).frames == 60


def test_what_cannot_travel_is_refused(sandbox: Sandbox, video: Path) -> None:
    class Rule:
        def pick(self, clock: Clock) -> npt.NDArray[np.int64]:
            return np.zeros(1, np.int64)

    with pytest.raises(ValueError, match="cannot travel"):
        sandbox.decode_views(video, [View(Rule(), ShortSide())])
    with pytest.raises(ValueError, match="frame 999 asked for"):
        sandbox.decode_views(video, [View(Frames((999,)), ShortSide())])
    assert sandbox.probe(lambda: open(video, "rb")).frames == 60  # noqa: SIM115 - closed by the sandbox


def test_the_child_is_replaced_after_its_time(video: Path) -> None:
    with Sandbox(recycle_after=2) as box:
        pids = []
        for _ in range(4):
            box.probe(video)
            pids.append(box.pid)
        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert not psutil.pid_exists(pids[0])
    assert box.pid is None
    assert not psutil.pid_exists(pids[3])


def test_threads_take_turns_and_may_end(video: Path) -> None:
    """The child outlives the thread that happened to start it."""
    with Sandbox() as box:
        threads = [threading.Thread(target=box.probe, args=(video,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pid = box.pid
        time.sleep(0.3)
        assert box.probe(video).frames == 60
        assert box.pid == pid


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "decoding"])
def test_no_child_outlives_its_parent(video: Path, tmp_path: Path, busy: bool) -> None:
    """Whatever the parent's __main__ is, and however it ends."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, io, time\n"
        f"sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from tubelet.video import Sandbox\n"
        "box = Sandbox()\n"
        f"box.probe({str(video)!r})\n"
        "print(box.pid, flush=True)\n"
        + ("from support.video_sources import Hang\nbox.probe(Hang)\n" if busy else "time.sleep(600)\n")
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5 if busy else 0)
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    end_s = time.monotonic() + 10
    while psutil.pid_exists(child) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)


def test_working_folder_is_not_on_the_child_s_path(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = HostileFolder(tmp_path / "hostile")
    monkeypatch.chdir(hostile.path)
    with Sandbox() as box:
        assert box.probe(video).frames == 60
    assert not hostile.imported


def test_child_imports_what_its_parent_does_first(video: Path, tmp_path: Path) -> None:
    """A path in front of the installed packages stays in front of them."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first/av.py").write_text("raise ImportError('this av')\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "first")
        # No file's fault: its own error, which says what the child said last.
        with pytest.raises(DecoderStartError, match=r"does not start \(status 1\): ImportError: this av"):
            Sandbox().probe(video)


def test_what_the_child_says_later_is_seen(
    taken_over: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    taken_over("speak")
    with Sandbox() as box, pytest.raises(DecodeError, match="ended with status 3"):
        box.probe(TRIGGER)
    assert "spoken by the \N{REPLACEMENT CHARACTER}[31mchild" in caplog.text


def test_a_pipe_is_no_source(sandbox: Sandbox, tmp_path: Path) -> None:
    """Opening it would wait for a writer, in the parent."""
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(DecodeError, match="neither a file nor a disk"):
        sandbox.probe(tmp_path / "a.mp4")


def test_the_child_is_light(sandbox: Sandbox, video: Path) -> None:
    """Starting it loads neither torch nor ray."""
    sandbox.probe(video)
    with open(f"/proc/{sandbox.pid}/maps", encoding="utf-8") as file:
        mapped = file.read()
    assert "libavcodec" in mapped
    assert "libtorch" not in mapped
    assert "_raylet" not in mapped


def test_works_in_a_ray_task(ray_cluster: None, video: Path) -> None:
    import ray

    path = str(video)

    @ray.remote(num_cpus=1)
    def task() -> tuple[int | None, tuple[int, ...]]:
        with Sandbox() as box:
            return box.probe(path).frames, box.decode_views(path, VIEWS).clips[0].frames.shape

    assert ray.get(task.remote()) == (60, (8, 48, 48, 3))


@pytest.mark.parametrize("opener", [False, True])
def test_bytes_that_were_read_are_counted(video: Path, opener: bool) -> None:
    """By FFmpeg through a descriptor, or by calls: about those of the file."""
    data = video.read_bytes()
    source = partial(io.BytesIO, data) if opener else video
    with Sandbox() as box:
        box.decode_views(source, VIEWS)  # modules that a new child reads late are counted with it
        before = box.bytes_read
        box.decode_views(source, VIEWS)
        assert len(data) / 2 < box.bytes_read - before < 8 * len(data)


def test_rules_of_others_come_with_their_modules(sandbox: Sandbox, video: Path) -> None:
    """They lie where the child cannot read: it is started anew when the first one is asked for."""
    sandbox.probe(video)
    for _ in range(2):
        clip = sandbox.decode_views(video, [View(EveryFrame(), ShortSide(48, 48))]).clips[0]
        assert clip.frames.shape == (60, 48, 48, 3)
        pid = sandbox.pid
    sandbox.probe(video)
    assert sandbox.pid == pid


def test_replies_have_all_that_is_known_of_a_video() -> None:
    """A field that is added to one has to be added to the other."""
    known = {name for name, _ in _INFO} | {"keyframes_s"}
    assert known == {field.name for field in dataclasses.fields(VideoInfo)}
    info = payloads.info(keyframes_s=(0.0, 0.5), fps=None, size_bytes=None)
    assert Reply.from_bytes(Reply(info=info).to_bytes()).info == info

"""A decoder that a file has taken over: what it says costs the child, what it tries is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.payloads import TRIGGER
from support.video import make_video
from tubelet.video import DecodeError, Limits, Sandbox, ShortSide, Uniform, View, decode_views
from tubelet.video.errors import DecoderStartError

VIEWS = [View(Uniform(4), ShortSide(32, 32))]
# What a child says that no child of ours says.
LIES = (
    "oversized", "pickled", "noise", "cut_off", "other_kind", "reads_beyond", "forged_code",
    "too_large_shape", "beyond_the_memory", "memory_that_shrinks", "no_memory",
)  # fmt: skip
ATTACK = """
import ctypes, json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from support import payloads
from tubelet.video import DecodeError, Sandbox, process
layers, folder = json.loads(sys.argv[2]), sys.argv[3]
os.environ["AWS_SECRET_ACCESS_KEY"] = "canary"
secret = ctypes.create_string_buffer(b"canary")
process._ENTRY = payloads.entry("steal", layers, folder, ctypes.addressof(secret))
if "hidden" not in layers:
    process.hide_memory = lambda: None
if "environment" not in layers:
    process.CHILD_ENV.update(os.environ)
with Sandbox() as box:
    try:
        box.probe(payloads.TRIGGER)
    except DecodeError as error:
        print(str(error))
"""
ALL = ("environment", "hidden", "landlock", "capabilities", "seccomp")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("hostile") / "a.mp4", frames=24, size=(96, 64))


@pytest.mark.parametrize("lie", LIES)
def test_a_reply_that_lies_costs_the_child_only(
    video: Path, tmp_path: Path, taken_over: Callable[..., None], lie: str
) -> None:
    taken_over(lie, folder=str(tmp_path))
    with Sandbox(Limits(deadline_s=20)) as box:
        box.probe(video)
        before = box.pid
        with pytest.raises(DecodeError) as caught:
            box.decode_views(TRIGGER, VIEWS)
        assert caught.value.code == "crash", caught.value
        assert box.pid != before
        clip, here = box.decode_views(video, VIEWS).clips[0], decode_views(video, VIEWS).clips[0]
        assert (clip.frames == here.frames).all()
    assert not list(tmp_path.iterdir())


def attacked(folder: Path, layers: tuple[str, ...], user: int | None = None) -> dict[str, str]:
    """What code in the child got, with only these layers of containment."""
    (folder / ".aws").mkdir(parents=True, exist_ok=True)
    (folder / ".aws/credentials").write_text("region = canary\n", "utf-8")
    folder.chmod(0o777)
    command = [sys.executable, "-P", "-c", ATTACK, json.dumps(sys.path), json.dumps(layers), str(folder)]
    if user is not None:
        # Where the interpreter lies in root's home, it can be read no other way.
        read = "+dac_read_search"
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        command = [*as_user, f"--inh-caps={read}", f"--ambient-caps={read}", *command]
    env = {"PATH": os.environ["PATH"], "AWS_SECRET_ACCESS_KEY": "canary"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def users() -> list[int | None]:
    """This user; where that is root, an ordinary one as well."""
    return [None, 65534] if os.getuid() == 0 and shutil.which("setpriv") else [None]


@pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
@pytest.mark.parametrize("user", users(), ids=str)
def test_nothing_is_gained(tmp_path_factory: pytest.TempPathFactory, user: int | None) -> None:
    folder = tmp_path_factory.mktemp("home")
    found = attacked(folder, ALL, user)
    own = json.loads(found.pop("own environment"))
    assert not any("canary" in value or name.startswith("AWS") for name, value in own.items())
    got = {name: what for name, what in found.items() if not what.startswith("refused")}
    assert not got
    assert sorted(path.name for path in folder.iterdir()) == [".aws"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
@pytest.mark.parametrize("user", users(), ids=str)
def test_which_layer_refuses_what(tmp_path_factory: pytest.TempPathFactory, user: int | None) -> None:
    """Each layer alone; and without any, what is tried succeeds: the attempts are real."""
    folder = tmp_path_factory.mktemp("home")
    alone = {
        layer: attacked(folder, tuple(layers), user)
        for layer, layers in {
            "none": [],
            **{layer: [layer] for layer in ALL[:-1]},
            "seccomp": ["seccomp", "reading"],
            "seccomp, no Landlock": ["seccomp"],
        }.items()
    }
    for attempt in alone["none"]:
        refusing = [layer for layer, found in alone.items() if found[attempt].startswith("refused")]
        print(f"| {attempt} | {'; '.join(refusing) or '-'} |")
        if attempt != "own environment":
            assert refusing, attempt
    assert "canary" in alone["none"]["~/.aws/credentials"]


def test_all_layers_can_be_asked_for(taken_over: Callable[..., None], video: Path) -> None:
    taken_over("hang", layers=("capabilities", "seccomp"))
    with pytest.raises(DecoderStartError, match=r"left out by the test.*--sandbox auto"):
        Sandbox(Limits(sandbox="required")).probe(video)


def test_what_lacks_is_said_once(
    taken_over: Callable[..., None], video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without Landlock no file is opened; decoding needs none."""
    taken_over("hang", layers=("capabilities", "seccomp"))
    for _ in range(2):
        with Sandbox() as box:
            assert box.decode_views(video, VIEWS).info.frames == 24
    assert caplog.text.count("left out by the test") == 1

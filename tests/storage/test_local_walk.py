"""Local folders are listed in the order of the paths, with several questions under way."""

from __future__ import annotations

import os
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tubelet import storage
from tubelet.storage import local_walk


def _make(root: Path, names: list[str]) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return sorted(names, key=str.encode)


def test_the_order_is_that_of_the_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{a}/{b:03d}.mp4" for a in ("a", "a.b", "a-b", "b/c/d", "b/c") for b in range(40)]
    wanted = _make(tmp_path, [*names, "a.mp4", "a0", "b.mp4", "z"])
    for chunk, ahead, entries in ((128, 32, 100_000), (3, 2, 100_000), (7, 32, 10)):
        monkeypatch.setattr(local_walk, "_CHUNK", chunk)
        monkeypatch.setattr(local_walk, "_MOST_AHEAD", ahead)
        monkeypatch.setattr(local_walk, "_MOST_ENTRIES", entries)
        monkeypatch.setattr(local_walk, "_SMALL", entries // 10)
        found = list(storage.list_objects(str(tmp_path)))
        assert [info.path for info in found] == wanted
        assert [info.size_bytes for info in found] == [len(path) for path in wanted]


@pytest.mark.parametrize("folders", [1, 8], ids=["one wide folder", "many folders"])
def test_several_files_are_asked_for_at_once(
    folders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk across a network answers each question late."""
    _make(tmp_path, [f"{number % folders}/{number:03d}" for number in range(64)])
    together, describe, asked = threading.Barrier(4), local_walk._describe, count()

    def wait(*args: Any) -> Any:
        if 8 <= next(asked) < 12:  # the first folder is opened alone: it tells how large they are
            together.wait(20)
        return describe(*args)

    monkeypatch.setattr(local_walk, "_CHUNK", 4)
    monkeypatch.setattr(local_walk, "_SMALL", 10)
    monkeypatch.setattr(local_walk, "_describe", wait)
    assert len(list(storage.list_objects(str(tmp_path)))) == 64
    assert not together.broken


def test_who_stops_early_leaves_no_threads(tmp_path: Path) -> None:
    _make(tmp_path, [f"{number % 5}/{number}" for number in range(500)])
    before = threading.active_count()
    assert storage.exists(str(tmp_path))
    assert threading.active_count() == before


def test_what_is_gone_by_now_is_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(tmp_path, ["a/1", "a/2", "b/1"])
    opened = local_walk._Folder.opened

    def tidied_up(folder: Any) -> Any:
        found = opened(folder)
        if folder.prefix == "":
            os.unlink(tmp_path / "b" / "1")
            os.rmdir(tmp_path / "b")
        if folder.prefix == "a/":
            os.unlink(tmp_path / "a" / "1")
        return found

    monkeypatch.setattr(local_walk, "_SMALL", 1)
    monkeypatch.setattr(local_walk._Folder, "opened", tidied_up)
    assert [info.path for info in storage.list_objects(str(tmp_path))] == ["a/2"]

"""A disk without room: one line, nothing left behind, and the same command goes on once there is room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tubelet import storage
from tubelet.storage import DiskFullError

_LIMITED = """
import resource, sys
from tubelet import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (storage.write_bytes, storage.put_if_absent):
    try:
        write(sys.argv[1] + "/part", b"x" * 8192)
    except storage.DiskFullError as error:
        print(str(error).count(chr(10)), error)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; where mounting is not allowed, the test is left to its twin below."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_leaves_nothing_and_goes_on(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "filler").write_bytes(b"0" * 50_000)
    (tmp_path / "local").write_bytes(b"4" * 40_000)
    writes = [
        lambda: storage.put_if_absent(f"{small_disk}/out/part", b"1" * 40_000),
        lambda: storage.write_bytes(f"{small_disk}/out/part", b"2" * 40_000),
        lambda: storage.upload_file(tmp_path / "local", f"{small_disk}/out/part"),
    ]
    for write in writes:
        with pytest.raises(DiskFullError, match=r"^no room to write .*/out/part .*free some.*again$"):
            write()
        assert storage.list_names(f"{small_disk}/out") == []
    (small_disk / "filler").unlink()
    assert storage.put_if_absent(f"{small_disk}/out/part", b"1" * 40_000)
    assert storage.list_names(f"{small_disk}/out") == ["part"]


def test_a_file_that_is_there_survives_a_full_disk(small_disk: Path) -> None:
    storage.write_bytes(f"{small_disk}/part", b"1" * 40_000)
    with pytest.raises(DiskFullError):
        storage.write_bytes(f"{small_disk}/part", b"2" * 40_000)
    assert storage.read_bytes(f"{small_disk}/part") == b"1" * 40_000


def test_a_limit_of_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert [line[:20] for line in done.stdout.splitlines()] == ["0 no room to write /"] * 2
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_without_hard_links_one_of_many_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """FAT and some network file systems have none. ``os.link`` says so here as it does there."""

    def no_link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    start = threading.Barrier(8)

    def contend(i: int) -> bool:
        start.wait()
        return storage.put_if_absent(tmp_path / "part", bytes([i]) * 100_000)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(contend, range(8)))
    assert sum(won) == 1
    assert (tmp_path / "part").read_bytes() == bytes([won.index(True)]) * 100_000
    assert os.listdir(tmp_path) == ["part"]


def test_a_claim_left_by_a_killed_process_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", no_link)
    (tmp_path / ".part.claim").touch()
    assert storage.put_if_absent(tmp_path / "part", b"1")
    assert os.listdir(tmp_path) == ["part"]


def test_no_room_for_links_is_not_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(DiskFullError):
        storage.put_if_absent(tmp_path / "part", b"1")
    assert os.listdir(tmp_path) == []

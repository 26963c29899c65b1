"""One job on one output: refused while the owner lives, taken over when it is dead."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tubelet import storage
from tubelet.config import UserError
from tubelet.storage.lock import LockLostError, OutputLock, lock_folder, machine_id

_HOLD = """
import sys, time
from tubelet.storage.lock import OutputLock
with OutputLock(sys.argv[1], job="tubelet holder"):
    print("held", flush=True)
    time.sleep(600)
"""


def _locks(out: str) -> list[str]:
    return storage.list_names(lock_folder(storage.normalise_uri(out)))


def _foreign(out: str, *, age_s: float, beat_s: float = 0.2, **changes: Any) -> None:
    """The lock of a job on another machine that gave its last sign of life ``age_s`` ago."""
    owner = {
        "nonce": "other",
        "host": "elsewhere",
        "machine": "elsewhere/boot",
        "pid": 1,
        "process_started_s": 0.0,
        "job": "tubelet train",
        "since_s": time.time() - age_s - 100,
        "heartbeat_s": time.time() - age_s,
        "heartbeat_every_s": beat_s,
        "stale_after_s": 60.0,
        **changes,
    }
    storage.write_bytes(
        f"{lock_folder(storage.normalise_uri(out))}/00000007.json", json.dumps(owner).encode()
    )


def test_second_job_is_refused_and_told_by_whom(root: str) -> None:
    out = f"{root}/out"
    with OutputLock(out, job="tubelet index"), pytest.raises(UserError) as caught:
        OutputLock(out).acquire()
    message = str(caught.value)
    assert f"`tubelet index` on {socket.gethostname()}, process {os.getpid()}, since 20" in message
    assert "choose another --out" in message
    with OutputLock(out):
        pass
    assert _locks(out) == []


def test_one_of_many_wins(root: str) -> None:
    start = threading.Barrier(6)

    def contend(_: int) -> OutputLock | None:
        lock = OutputLock(f"{root}/out")
        start.wait()
        try:
            lock.acquire()
        except UserError:
            return None
        return lock

    with ThreadPoolExecutor(6) as pool:
        held = [lock for lock in pool.map(contend, range(6)) if lock is not None]
    assert len(held) == 1
    held[0].release()


def test_one_of_many_takes_over(root: str) -> None:
    _foreign(f"{root}/out", age_s=1000)
    start = threading.Barrier(6)

    def contend(_: int) -> OutputLock | None:
        lock = OutputLock(f"{root}/out")
        start.wait()
        try:
            lock.acquire()
        except UserError:
            return None
        return lock

    with ThreadPoolExecutor(6) as pool:
        held = [lock for lock in pool.map(contend, range(6)) if lock is not None]
    assert len(held) == 1
    held[0].release()
    assert _locks(f"{root}/out") == []


def test_killed_owner_is_taken_over_at_once(root: str) -> None:
    out = f"{root}/out"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, out], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"tubelet holder.*process {holder.pid}"):
            OutputLock(out).acquire()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    start_s = time.monotonic()
    with OutputLock(out):
        assert time.monotonic() - start_s < 5


def test_owner_elsewhere_counts_while_it_beats(root: str) -> None:
    _foreign(f"{root}/out", age_s=10)
    with pytest.raises(UserError, match=r"`tubelet train` on elsewhere, process 1.*1\d s ago"):
        OutputLock(f"{root}/out").acquire()


def test_clock_that_is_behind_does_not_cost_a_lock(root: str) -> None:
    """An owner whose clock is minutes slow looks stale, but is seen to renew its lock."""
    stop = threading.Event()
    _foreign(f"{root}/out", age_s=500, beat_s=1.0)

    def beat() -> None:
        while not stop.wait(0.3):
            _foreign(f"{root}/out", age_s=500, beat_s=1.0)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="elsewhere"):
            OutputLock(f"{root}/out").acquire()
    finally:
        stop.set()
        thread.join()


def test_reused_process_id_is_not_the_owner(root: str) -> None:
    _foreign(f"{root}/out", age_s=1, machine=machine_id(), pid=os.getpid(), process_started_s=5.0)
    with OutputLock(f"{root}/out"):
        assert len(_locks(f"{root}/out")) == 1


def test_lock_is_renewed(root: str) -> None:
    with OutputLock(f"{root}/out", heartbeat_every_s=0.1):
        place = f"{lock_folder(storage.normalise_uri(f'{root}/out'))}/{_locks(f'{root}/out')[0]}"
        first = json.loads(storage.read_bytes(place))["heartbeat_s"]
        time.sleep(1.0)
        assert json.loads(storage.read_bytes(place))["heartbeat_s"] > first


def test_owner_that_was_taken_over_notices(root: str) -> None:
    with OutputLock(f"{root}/out", heartbeat_every_s=0.1) as lock:
        lock.check()
        _foreign(f"{root}/out", age_s=0)
        with pytest.raises(LockLostError, match="taken over by `tubelet train` on elsewhere"):
            _check_for(lock, 10)


def _check_for(lock: OutputLock, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        lock.check()
        time.sleep(0.05)


def test_garbage_in_place_of_a_lock_does_not_block(root: str) -> None:
    storage.write_bytes(f"{lock_folder(storage.normalise_uri(f'{root}/out'))}/00000001.json", b"not json")
    with OutputLock(f"{root}/out"):
        pass


def test_file_outputs_are_locked_beside(tmp_path: Path) -> None:
    with OutputLock(tmp_path / "m.parquet"):
        assert [p.name for p in tmp_path.iterdir()] == ["_m.parquet.lock"]
    assert list(tmp_path.iterdir()) == []


def test_refused_job_leaves_no_folder_behind(tmp_path: Path) -> None:
    with OutputLock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []

"""One job on one output: refused while the owner lives, taken over when it is dead."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tubelet import storage
from tubelet.config import UserError
from tubelet.storage import StorageOptions, StoreUnavailableError
from tubelet.storage.lock import LockLostError, OutputLock, lock_folder, machine_id

_HOLD = """
import sys, time
from tubelet.storage import StorageOptions, StoreUnavailableError
from tubelet.storage.lock import OutputLock
with OutputLock(sys.argv[1], job="tubelet holder"):
    print("held", flush=True)
    time.sleep(600)
"""


def _locks(out: str) -> list[str]:
    return storage.list_names(lock_folder(storage.normalise_uri(out)))


def _foreign(out: str, *, stale_after_s: float = 0.5, beat: float = 0.0, **changes: Any) -> None:
    """The lock file of a job on another machine, whose clock shows 1970."""
    owner = {
        "nonce": "other",
        "host": "elsewhere",
        "machine": "elsewhere/boot",
        "pid": 1,
        "process_started_s": 0.0,
        "job": "tubelet train",
        "since_s": 100.0,
        "heartbeat_s": 200.0 + beat,
        "heartbeat_every_s": 0.2,
        "stale_after_s": stale_after_s,
        **changes,
    }
    storage.write_bytes(
        f"{lock_folder(storage.normalise_uri(out))}/00000007.json", json.dumps(owner).encode()
    )


@contextmanager
def _beating(out: str, **changes: Any) -> Iterator[None]:
    """A job on another machine that renews its lock."""
    stop = threading.Event()
    _foreign(out, **changes)

    def beat() -> None:
        number = 0
        while not stop.wait(0.1):
            number += 1
            _foreign(out, beat=number, **changes)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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


def _contend(out: str) -> list[OutputLock]:
    """The locks of those of six who got one, all asking at once."""
    start = threading.Barrier(6)

    def contend(_: int) -> OutputLock | None:
        lock = OutputLock(out)
        start.wait()
        try:
            lock.acquire()
        except UserError:
            return None
        return lock

    with ThreadPoolExecutor(6) as pool:
        return [lock for lock in pool.map(contend, range(6)) if lock is not None]


def test_one_of_many_wins(root: str) -> None:
    held = _contend(f"{root}/out")
    assert len(held) == 1
    held[0].release()


def test_one_of_many_takes_over(root: str) -> None:
    _foreign(f"{root}/out")
    held = _contend(f"{root}/out")
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


def test_owner_elsewhere_counts_while_it_beats_whatever_its_clock_says(root: str) -> None:
    with (
        _beating(f"{root}/out", stale_after_s=30.0),
        pytest.raises(UserError, match="`tubelet train` on elsewhere, process 1, since 1970"),
    ):
        OutputLock(f"{root}/out").acquire()


def test_clock_that_is_ahead_keeps_no_dead_owner_alive(root: str) -> None:
    _foreign(f"{root}/out", heartbeat_s=time.time() + 1e6)
    with OutputLock(f"{root}/out") as lock:
        lock.check()


def test_stopped_process_on_this_machine_is_no_dead_owner(root: str) -> None:
    """Its heart does not beat while it is stopped (or the machine asleep), yet it will go on."""
    out = f"{root}/out"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, out], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        (name,) = _locks(out)
        place = f"{lock_folder(storage.normalise_uri(out))}/{name}"
        record = json.loads(storage.read_bytes(place))
        storage.write_bytes(place, json.dumps({**record, "stale_after_s": 0.0}).encode())
        with pytest.raises(UserError, match=r"tubelet holder.*\n.*--break-lock if it cannot be running"):
            OutputLock(out).acquire()
    finally:
        holder.kill()
        holder.wait()


def test_broken_lock_passes_to_who_broke_it(root: str) -> None:
    with (
        OutputLock(f"{root}/out", heartbeat_every_s=0.1) as former,
        OutputLock(f"{root}/out", options=StorageOptions(break_lock=True), job="tubelet breaker") as lock,
    ):
        lock.check()
        assert len(_locks(f"{root}/out")) == 1
        with pytest.raises(LockLostError, match="taken over by `tubelet breaker`"):
            _check_for(former, 20)
    assert _locks(f"{root}/out") == []


def test_owner_that_slept_looks_before_it_publishes(root: str) -> None:
    """Its thread did not run meanwhile, so that it is the check that has to look."""
    with OutputLock(f"{root}/out", heartbeat_every_s=1000, stale_after_s=0.2) as sleeper:
        with OutputLock(f"{root}/out", options=StorageOptions(break_lock=True)):
            pass
        time.sleep(0.3)
        with pytest.raises(LockLostError, match="taken away"):
            sleeper.check()


def test_claim_tells_another_process_who_has_the_output(root: str) -> None:
    lock = OutputLock(f"{root}/out")
    assert lock.claim() is None
    with lock:
        claim = pickle.loads(pickle.dumps(lock.claim()))
        claim.check()
        with (
            OutputLock(f"{root}/out", options=StorageOptions(break_lock=True), job="tubelet breaker"),
            pytest.raises(LockLostError, match="taken over by `tubelet breaker`"),
        ):
            claim.check()
        # The numbers of locks begin anew, those of owners do not.
        with OutputLock(f"{root}/out"), pytest.raises(LockLostError, match="taken over"):
            claim.check()


def test_an_outage_costs_no_lock(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = storage.list_names, [1]

    def away(uri: str, options: StorageOptions) -> list[str]:
        if failures[0]:
            failures[0] -= 1
            raise StoreUnavailableError("503")
        return real(uri, options)

    with OutputLock(f"{root}/out", heartbeat_every_s=1000, stale_after_s=0.0) as lock:
        monkeypatch.setattr("tubelet.storage.lock.storage.list_names", away)
        lock.check()
        assert failures == [0]


def test_reused_process_id_is_not_the_owner(root: str) -> None:
    _foreign(f"{root}/out", stale_after_s=500, machine=machine_id(), pid=os.getpid(), process_started_s=5.0)
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
        _foreign(f"{root}/out")
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

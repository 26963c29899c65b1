"""A local Ray that does not come up in time, and what it does to this process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private import worker
from support import wait_until
from tubelet.config import UserError
from tubelet_jobs import common
from tubelet_jobs.ray_noise import quiet_ray

LATE = "The current node timed out during startup."


class BusyMachine:
    """In place of ``ray.init``: leaves processes behind and fails, ``failures`` times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.started: list[psutil.Process] = []

    def init(self, **given: Any) -> None:
        assert given["address"] == "local"
        if len(self.started) == self.failures:
            return
        self.started.append(psutil.Popen(["sleep", "600"]))
        raise Exception(f"{LATE}\nmore about it")


def _start(monkeypatch: pytest.MonkeyPatch, machine: BusyMachine) -> None:
    monkeypatch.setattr("ray.init", machine.init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    try:
        common.connect_ray("local")
    finally:
        for process in machine.started:
            assert process.wait(10) == -signal.SIGKILL


def test_what_nodes_say_is_short_and_no_part_of_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
    monkeypatch.delenv("TUBELET_DEBUG", raising=False)
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data))
    with quiet_ray():
        pass
    died = (
        "A worker died or was killed while executing a task by an unexpected system error. Lease ID: 01 "
        "Worker ID: 26 Node ID: 9b Worker IP address: 192.0.2.2 Worker port: 44455 Worker PID: 27974 Worker "
        "exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with error code 2."
    )
    lost = (
        "The node with node id: 3d and address: 10.0.0.2 and node name: 10.0.0.2 has been marked dead "
        "because the detector has missed too many heartbeats from it. This can happen when a\t(1) raylet "
        "crashes unexpectedly (OOM, etc.) \n\t(2) raylet has lagging heartbeats due to slow network."
    )
    count = "WARNING: 8 PYTHON worker processes have been started on node: d1"
    for line in (count, died, lost, "the node is low on memory"):
        told = {"lines": [line], "pid": "raylet", "is_err": False}
        worker.print_to_stdstream(told, ignore_prefix=False)
    assert [line for data in shown for line in data["lines"]] == [
        "a worker died: process 27974 on 192.0.2.2",
        "the node at 10.0.0.2 does not answer any more",
        "the node is low on memory",
    ]
    assert all(data["is_err"] for data in shown)


def test_a_start_that_is_late_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _start(monkeypatch, BusyMachine(failures=1))
    assert [record.getMessage() for record in caplog.records] == [
        f"Ray did not start, trying once more: {LATE}"
    ]


def test_a_second_failure_is_said_in_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = BusyMachine(failures=5)
    with pytest.raises(UserError, match=rf"twice: {LATE}\nrun the same command") as caught:
        _start(monkeypatch, machine)
    assert len(machine.started) == 2
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="signals that are caught stand in /proc")
def test_ray_does_not_hear_signals_first(ray_cluster: None) -> None:
    """It would exit on SIGTERM, and its core would tell of it with a trace; here nobody asked for that."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    [caught] = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
    assert not caught & 1 << (signal.SIGTERM - 1)


def test_a_local_node_has_no_processes_without_use(ray_cluster: None) -> None:
    commands = [" ".join(child.cmdline()[:4]) for child in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    unused = ("dashboard.py", "autoscaler/_private/monitor.py", "log_monitor.py", "setup_worker.py")
    assert not [command for command in commands if any(name in command for name in unused)]


STOPS_THE_FIRST_NODE = """
import threading, time, psutil, ray
from tubelet_jobs.common import connect_ray
me = psutil.Process()
def stop():
    while True:
        for child in me.children(recursive=True):
            try:
                if "raylet" in child.name():
                    print("stopped", child.pid, flush=True)
                    child.suspend()
                    return
            except psutil.Error: pass
        time.sleep(0.005)
threading.Thread(target=stop, daemon=True).start()
connect_ray("local", num_cpus=1)
print([node["Alive"] for node in ray.nodes()])
print(sum("raylet" in child.name() for child in me.children(recursive=True)))
"""


@pytest.mark.slow
def test_a_node_that_hangs_is_started_anew() -> None:
    command = [sys.executable, "-c", STOPS_THE_FIRST_NODE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    stopped, alive, nodes = done.stdout.splitlines()
    assert (alive, nodes) == ("[True]", "1"), done.stderr
    assert "Ray did not start, trying once more" in done.stderr
    wait_until(lambda: not psutil.pid_exists(int(stopped.split()[1])), 10)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "nobody answers at 127.0.0.1:9"),
        ("ray://head:10001", "tubelet submit --address http://HEAD"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(common, "_ANSWER_S", 0.0)
    with pytest.raises(UserError, match=said):
        common.connect_ray(address)

"""Machines on this one that share nothing but its kernel and disk, for clusters of Ray. Wants Linux and root.

Each has network, processes, host name, ``/tmp`` and ``/dev/shm`` of its own; this one is on their network,
too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from support import wait_until

_NETWORK = "10.213.77"
HERE = f"{_NETWORK}.254"
_ROOT = Path(__file__).resolve().parents[2]

# The first process: orphans that nobody waits for would stay.
_FIRST = """
import os, time
while True:
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        time.sleep(0.2)
"""


class Machines:
    """A network and the machines on it; a context manager.

    Args:
        folder: seen by all machines.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bridge = f"tb{os.getpid()}"
        self._made: list[Machine] = []

    def __enter__(self) -> Machines:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{HERE}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self._made:
            machine.kill()
        _ip("link", "del", self._bridge)

    def add(self, name: str) -> Machine:
        """One more."""
        made = Machine(name, f"{_NETWORK}.{len(self._made) + 1}", self._bridge, self._folder)
        self._made.append(made)
        return made


class Machine:
    """One of :class:`Machines`.

    Attributes:
        address: on their network.
    """

    def __init__(self, name: str, address: str, bridge: str, folder: Path) -> None:
        self.name, self.address = name, address
        self._space, self._folder = f"{bridge}{name}", folder
        _ip("netns", "add", self._space)
        inner, outer = f"e{address.rpartition('.')[2]}", f"{bridge}v{address.rpartition('.')[2]}"
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", self._space)
        _ip("link", "set", outer, "master", bridge, "up")
        _ip("-n", self._space, "addr", "add", f"{address}/24", "dev", inner)
        for device in (inner, "lo"):
            _ip("-n", self._space, "link", "set", device, "up")
        self._process = self._boot()

    def _boot(self) -> psutil.Popen:
        hosts, ready = self._folder / f"hosts-{self.name}", self._folder / f"ready-{self.name}"
        hosts.write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        # What lies in the real /tmp and is wanted: over it comes an empty one.
        kept = [path for path in {_ROOT, self._folder, Path(sys.prefix)} if path.is_relative_to("/tmp")]
        lines = ["set -e", "mount --make-rprivate /", "mount -t tmpfs tmpfs /mnt"]
        lines += [f"mkdir /mnt/{i}; mount --bind {path} /mnt/{i}" for i, path in enumerate(kept)]
        lines += ["mount -t tmpfs tmpfs /tmp", "mkdir /tmp/home"]
        lines += [f"mkdir -p {path}; mount --bind /mnt/{i} {path}" for i, path in enumerate(kept)]
        lines += [
            "mount -t tmpfs tmpfs /dev/shm",
            f"mount --bind {hosts} /etc/hosts",
            f"hostname {self.name}",
        ]
        lines += [f"touch {ready}", f"exec {sys.executable} -c '{_FIRST}'"]
        spaces = ["--pid", "--mount-proc", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
        command = ["ip", "netns", "exec", self._space, "unshare", *spaces, "sh", "-c", "\n".join(lines)]
        process = psutil.Popen(command, cwd="/")
        wait_until(lambda: ready.exists() or process.poll() is not None, 30)
        assert ready.exists(), f"{self.name} did not start"
        return process

    def start(self, *words: Any, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A command on this machine; what it says goes to ``log-NAME``."""
        (first,) = self._process.children()
        enter = ["nsenter", f"--target={first.pid}", "--net", "--mount", "--pid", "--uts", "--ipc", "--wd=/"]
        names = {**os.environ, "HOME": "/tmp/home", **(env or {})}
        with (self._folder / f"log-{self.name}").open("ab") as log:
            return subprocess.Popen([*enter, *map(str, words)], env=names, stdout=log, stderr=log)

    def run(self, *words: Any, env: Mapping[str, str] | None = None) -> None:
        """A command that ends."""
        status = self.start(*words, env=env).wait(180)
        assert status == 0, (self._folder / f"log-{self.name}").read_text("utf-8")[-3000:]

    def kill(self) -> None:
        """Pull the plug."""
        if self._process.is_running():
            for child in self._process.children():
                child.kill()  # all others in there end with the first
            self._process.wait()
            _ip("netns", "del", self._space)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)

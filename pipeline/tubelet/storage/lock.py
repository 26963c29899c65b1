"""One job at a time on one output.

The lock is a numbered file below the output's ``_lock`` folder, created only if its number is free. Whoever
creates one looks again afterwards and steps back if there is a rival, so two jobs never both go on; nothing
more than a conditional create and a consistent listing is asked of the store. The owner renews its file
while it lives. The lock of an owner that died is taken over: at once where its process was on this machine,
else when it has not been renewed for a while.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import psutil

from tubelet import storage
from tubelet.config import UserError

_ATTEMPTS = 5


class LockLostError(UserError):
    """Another job took the output over, because this one gave no sign of life for too long."""


@dataclass(frozen=True)
class _Owner:
    """What a lock file says of its owner; times are seconds since 1970 by the owner's clock."""

    nonce: str
    host: str
    machine: str
    pid: int
    process_started_s: float
    job: str
    since_s: float
    heartbeat_s: float
    heartbeat_every_s: float
    stale_after_s: float


class OutputLock:
    """Holds ``uri`` (an output folder, or a file such as ``x.parquet``) for this job; a context manager.

    Args:
        uri: the output. Its lock lies in ``<uri>/_lock``, or beside a file in ``_<name>.lock``.
        job: what the owner is doing, for the message others get.
        heartbeat_every_s: how often the lock is renewed.
        stale_after_s: how long after its last renewal a lock may be taken over.

    Raises:
        UserError: on entering, another job holds the output; the message says who, and since when.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        job: str = "",
        heartbeat_every_s: float = 10.0,
        stale_after_s: float = 60.0,
    ) -> None:
        self.uri = storage.normalise_uri(uri)
        self.folder = lock_folder(self.uri)
        self._job = job or " ".join(["tubelet", *sys.argv[1:2]])
        self._every_s, self._stale_after_s = heartbeat_every_s, stale_after_s
        self._nonce = secrets.token_hex(8)
        self._since_s = time.time()
        self._name: str | None = None
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._made_output = False

    def __enter__(self) -> OutputLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, or raise ``UserError``."""
        self._made_output = not storage.is_remote(self.uri) and not Path(self.uri).exists()
        for _ in range(_ATTEMPTS):
            found = self._read_all()
            dead = {name: owner for name, owner in found.items() if not self._is_alive(name, owner)}
            alive = [owner for name, owner in found.items() if name not in dead]
            if alive:
                raise self._refusal(alive[-1])
            if self._claim(found, dead):
                self._thread = threading.Thread(target=self._renew, name="output-lock", daemon=True)
                self._thread.start()
                return
            time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - two that step back must not meet again
        raise UserError(f"several jobs want {self.uri} at once: start one, or choose another --out")

    def release(self) -> None:
        """Give the lock back (nothing to do if it is not held)."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._name is not None:
            with suppress(OSError, UserError):  # the store is away: the lock goes stale by itself
                storage.delete(storage.join(self.folder, self._name))
            self._name = None
        self._remove_empty_folders()

    def check(self) -> None:
        """Call before publishing something.

        Raises:
            LockLostError: another job has taken the output over meanwhile.
        """
        if self._lost is not None:
            raise LockLostError(self._lost)

    def _claim(self, found: dict[str, _Owner], dead: dict[str, _Owner]) -> bool:
        number = max((int(name.partition(".")[0]) for name in found), default=0) + 1
        name = f"{number:08d}.json"
        if not storage.put_if_absent(storage.join(self.folder, name), self._record()):
            return False
        judged = {owner.nonce for owner in dead.values()}
        rivals = [o for n, o in self._read_all().items() if n != name and o.nonce not in judged]
        if rivals:
            storage.delete(storage.join(self.folder, name))
            return False
        self._name = name
        for old in dead:
            storage.delete(storage.join(self.folder, old))
        return True

    def _read_all(self) -> dict[str, _Owner]:
        """Lock files by name, in the order of their numbers."""
        found: dict[str, _Owner] = {}
        for name in storage.list_names(self.folder):
            if name.endswith(".json") and name.partition(".")[0].isdecimal():
                with suppress(FileNotFoundError):  # released since it was listed
                    found[name] = _parse(storage.read_bytes(storage.join(self.folder, name)))
        return found

    def _is_alive(self, name: str, owner: _Owner) -> bool:
        here = owner.machine == machine_id()
        if here and not _runs(owner):
            return False
        if time.time() - owner.heartbeat_s < owner.stale_after_s:
            return True
        # Clocks of two machines may differ by more than a beat: a stale owner elsewhere is watched first.
        return not here and owner.heartbeat_every_s > 0 and self._beats(name, owner)

    def _beats(self, name: str, owner: _Owner) -> bool:
        end_s = time.monotonic() + 2 * min(owner.heartbeat_every_s, 30.0)
        while time.monotonic() < end_s:
            time.sleep(min(0.5, owner.heartbeat_every_s))
            now = self._read_all().get(name)
            if now is None:
                return False
            if now.heartbeat_s != owner.heartbeat_s:
                return True
        return False

    def _renew(self) -> None:
        renewed_s = time.monotonic()
        while not self._stop.wait(self._every_s):
            try:
                rivals = [o for n, o in self._read_all().items() if self._name is not None and n > self._name]
                if rivals:
                    self._lost = f"{self.uri} was taken over by {_describe(rivals[-1])}: this job stops"
                    return
                storage.write_bytes(storage.join(self.folder, self._name or ""), self._record())
                renewed_s = time.monotonic()
            except Exception as error:  # the store may be back before the lock is stale
                if time.monotonic() - renewed_s > self._stale_after_s:
                    self._lost = f"the lock on {self.uri} could not be renewed: {str(error).splitlines()[0]}"
                    return

    def _record(self) -> bytes:
        owner = _Owner(
            nonce=self._nonce,
            host=socket.gethostname(),
            machine=machine_id(),
            pid=os.getpid(),
            process_started_s=psutil.Process().create_time(),
            job=self._job,
            since_s=self._since_s,
            heartbeat_s=time.time(),
            heartbeat_every_s=self._every_s,
            stale_after_s=self._stale_after_s,
        )
        return json.dumps(asdict(owner)).encode()

    def _refusal(self, owner: _Owner) -> UserError:
        return UserError(
            f"{self.uri} is in use by {_describe(owner)}\nwait until that job ends, or choose another --out"
        )

    def _remove_empty_folders(self) -> None:
        if storage.is_remote(self.uri):
            return
        with suppress(OSError):
            os.rmdir(self.folder)
            if self._made_output:
                os.rmdir(self.uri)


def lock_folder(uri: str) -> str:
    """Where the lock files of an output lie: under a name that readers skip."""
    name = storage.name_of(uri)
    if "." in name.strip("."):
        return storage.join(storage.parent(uri), f"_{name}.lock")
    return storage.join(uri, "_lock")


def machine_id() -> str:
    """Names this run of this machine (or container): within it, a process id means one process."""
    parts = [socket.gethostname()]
    for read in (_boot_id, _pid_namespace):
        with suppress(OSError):
            parts.append(read())
    return "/".join(parts)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _runs(owner: _Owner) -> bool:
    try:
        process = psutil.Process(owner.pid)
        same = abs(process.create_time() - owner.process_started_s) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _parse(data: bytes) -> _Owner:
    try:
        known = json.loads(data)
        return _Owner(**{field.name: known[field.name] for field in fields(_Owner)})
    except (ValueError, KeyError, TypeError):  # not written by us: as an owner long dead
        return _Owner("", "unknown", "", 0, 0.0, "an unknown job", 0.0, 0.0, 0.0, 0.0)


def _describe(owner: _Owner) -> str:
    since = datetime.fromtimestamp(owner.since_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    age_s = max(0.0, time.time() - owner.heartbeat_s)
    place = f"`{owner.job}` on {owner.host}, process {owner.pid}"
    return f"{place}, since {since} (last sign of life {age_s:.0f} s ago)"

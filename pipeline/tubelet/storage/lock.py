"""One job at a time on one output.

The lock is a numbered file below the output's ``_lock`` folder, created only if its number is free. Whoever
creates one looks again afterwards and steps back if there is a rival, so two jobs never both go on; nothing
more than a conditional create and a consistent listing is asked of the store.

The owner renews its file while it lives. An owner on this machine (the same boot and space of process ids)
lives exactly as long as its process. Of one elsewhere nothing is believed but what is seen: its file is
watched, and it is dead when that does not change for the ``stale_after_s`` that it set itself. An owner that
could not renew its file for so long (it was stopped, or the store was away) looks whether the output is still
its own before it publishes anything. No two clocks are compared.
"""

from __future__ import annotations

import json
import logging
import os
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
from tubelet.storage.base import DEFAULT_OPTIONS, StorageOptions
from tubelet.storage.retries import with_retries

_log = logging.getLogger(__name__)

# A job waits no longer than this for a sign of life, whatever the owner's file says.
_LONGEST_WATCH_S = 600.0
_POLL_S = 1.0


class _ContendedError(UserError):
    """Another job wanted the output at the same moment; both stepped back."""


class LockLostError(UserError):
    """Another job took the output over, because it was told to, or this one gave no sign of life."""


@dataclass(frozen=True)
class _Owner:
    """What a lock file says of its owner.

    ``since_s`` and ``heartbeat_s``: seconds since 1970 by the owner's clock, for people and to be different
    each time; ``process_started_s`` counts from the boot where the system says so.
    """

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


@dataclass(frozen=True)
class Claim:
    """Tells another process of the same job whether the output is still its own; it travels by pickle.

    Attributes:
        uri: the output.
        name: of the lock file.
        nonce: of its owner.
    """

    uri: str
    name: str
    nonce: str

    def check(self) -> None:
        """Call before publishing something.

        Raises:
            LockLostError: another job has taken the output over.
            StoreUnavailableError: the store is away, so that nobody knows.
        """
        lost = _what_is_lost(self, _read_all(lock_folder(self.uri)))
        if lost is not None:
            raise LockLostError(lost)


class OutputLock:
    """Holds ``uri`` (an output folder, or a file such as ``x.parquet``) for this job; a context manager.

    Args:
        uri: the output. Its lock lies in ``<uri>/_lock``, or beside a file in ``_<name>.lock``.
        job: what the owner is doing, for the message others get.
        options: ``single_writer`` (go on without a lock where the store cannot have one) and ``break_lock``
            (take the output over from whoever holds it). Locks are always signed, also for a job that reads
            a public bucket.
        heartbeat_every_s: how often the lock is renewed.
        stale_after_s: how long after its last renewal a lock may be taken over.

    Raises:
        UserError: on entering, another job holds the output (the message says who, and since when), or the
            store knows no conditional puts.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        job: str = "",
        options: StorageOptions = DEFAULT_OPTIONS,
        heartbeat_every_s: float = 10.0,
        stale_after_s: float = 60.0,
    ) -> None:
        self.uri = storage.normalise_uri(uri)
        self.folder = lock_folder(self.uri)
        self._options = options.for_writing()
        self._break = options.break_lock
        self._job = job or " ".join(["tubelet", *sys.argv[1:2]])
        self._every_s, self._stale_after_s = heartbeat_every_s, stale_after_s
        self._nonce = secrets.token_hex(8)
        self._since_s = time.time()
        self._name: str | None = None
        self._lost: str | None = None
        self._renewed_s = time.monotonic()
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
        """Take the lock.

        Raises:
            UserError: as on entering.
        """
        self._made_output = not storage.is_remote(self.uri) and not Path(self.uri).exists()
        if not self._can_lock():
            return
        with_retries(
            self._try_to_take, retry_on=_ContendedError, attempts=5, first_pause_s=0.1, most_pause_s=0.5
        )
        self._thread = threading.Thread(target=self._keep, name="output-lock", daemon=True)
        self._thread.start()

    def _can_lock(self) -> bool:
        """Whether the store can hold locks; said to a single writer, an error to others."""
        if not storage.is_remote(self.uri) or storage.check_conditions(self.folder, self._options).absent:
            return True
        lack = f"the store of {self.uri} does not honour conditional puts"
        if not self._options.single_writer:
            raise UserError(
                f"{lack}, so two jobs on one output would not see each other\n"
                "write to another store, or set --single-writer where you let one job at a time write"
            )
        _log.warning("%s: no lock is held (--single-writer), start no second job on it", lack)
        return False

    def _try_to_take(self) -> None:
        found = self._read_all()
        dead = found if self._break else {n: o for n, o in found.items() if not self._is_alive(n, o)}
        alive = [owner for name, owner in found.items() if name not in dead]
        if alive:
            raise self._refusal(alive[-1])
        if not self._claim(found, dead):
            raise _ContendedError(f"several jobs want {self.uri} at once: start one, or choose another --out")
        for owner in dead.values():
            _log.warning("%s is taken over from %s", self.uri, _describe(owner))

    def release(self) -> None:
        """Give the lock back (nothing to do if it is not held)."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._name is not None:
            with suppress(OSError, UserError):  # the store is away: the lock goes stale by itself
                self._delete(self._name)
            self._name = None
        self._remove_empty_folders()

    @property
    def lost(self) -> str | None:
        """What became of the lock, as far as the last renewal saw; None: it is held. Asks no store."""
        return self._lost

    def claim(self) -> Claim | None:
        """For other processes of this job; None where no lock is held."""
        return None if self._name is None else Claim(self.uri, self._name, self._nonce)

    def check(self) -> None:
        """Call before publishing something.

        Raises:
            LockLostError: another job has taken the output over meanwhile, or may have.
        """
        overdue = time.monotonic() - self._renewed_s > self._stale_after_s
        if self._name is not None and self._lost is None and overdue:
            with_retries(self._renew)
        if self._lost is not None:
            raise LockLostError(self._lost)

    def _claim(self, found: dict[str, _Owner], dead: dict[str, _Owner]) -> bool:
        number = max((int(name.partition(".")[0]) for name in found), default=0) + 1
        name = f"{number:08d}.json"
        self._renewed_s = time.monotonic()
        if not storage.put_if_absent(storage.join(self.folder, name), self._record(), self._options):
            there = self._read_all().get(name)
            if there is None or there.nonce != self._nonce:  # else only the answer to our own put was lost
                return False
        judged = {owner.nonce for owner in dead.values()}
        rivals = [o for n, o in self._read_all().items() if n != name and o.nonce not in judged]
        if rivals:
            self._delete(name)
            return False
        self._name = name
        for old in dead:
            self._delete(old)
        return True

    def _delete(self, name: str) -> None:
        storage.delete(storage.join(self.folder, name), self._options)

    def _read_all(self) -> dict[str, _Owner]:
        return _read_all(self.folder, self._options)

    def _is_alive(self, name: str, owner: _Owner) -> bool:
        if owner.machine == machine_id():
            return _runs(owner)
        return self._beats(name, owner)

    def _beats(self, name: str, owner: _Owner) -> bool:
        """Whether the owner is seen to renew its file, within the time after which it gives up itself."""
        watch_s = min(owner.stale_after_s, _LONGEST_WATCH_S)
        if watch_s > _POLL_S:
            _log.warning(
                "%s is held by %s: watching for up to %.0f s whether it is alive",
                self.uri,
                _describe(owner),
                watch_s,
            )
        end_s = time.monotonic() + watch_s
        while time.monotonic() < end_s:
            time.sleep(min(_POLL_S, watch_s / 10))
            now = self._read_all().get(name)
            if now is None:
                return False
            if now != owner:
                return True
        return False

    def _keep(self) -> None:
        while self._lost is None and not self._stop.wait(self._every_s):
            try:
                self._renew()
            except Exception as error:  # the store may be back soon, and `check` looks again
                _log.info("the lock on %s was not renewed: %s", self.uri, error)

    def _renew(self) -> None:
        """Write the lock file anew; says in ``_lost`` when the output is another's, or was."""
        began_s, claim = time.monotonic(), self.claim()
        if claim is None or self._stop.is_set():
            return
        self._lost = _what_is_lost(claim, self._read_all())
        if self._lost is None:
            storage.write_bytes(storage.join(self.folder, claim.name), self._record(), self._options)
            self._renewed_s = began_s

    def _record(self) -> bytes:
        owner = _Owner(
            nonce=self._nonce,
            host=socket.gethostname(),
            machine=machine_id(),
            pid=os.getpid(),
            process_started_s=_started_s(os.getpid()),
            job=self._job,
            since_s=self._since_s,
            heartbeat_s=time.time(),
            heartbeat_every_s=self._every_s,
            stale_after_s=self._stale_after_s,
        )
        return json.dumps(asdict(owner)).encode()

    def _refusal(self, owner: _Owner) -> UserError:
        return UserError(
            f"{self.uri} is in use by {_describe(owner)}\n"
            "wait until that job ends, choose another --out, or set --break-lock if it cannot be running"
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


def _read_all(folder: str, options: StorageOptions = DEFAULT_OPTIONS) -> dict[str, _Owner]:
    """Lock files by name, in the order of their numbers."""
    found: dict[str, _Owner] = {}
    for name in storage.list_names(folder, options):
        if name.endswith(".json") and name.partition(".")[0].isdecimal():
            with suppress(FileNotFoundError):  # released since it was listed
                found[name] = _parse(storage.read_bytes(storage.join(folder, name), options))
    return found


def _what_is_lost(claim: Claim, found: dict[str, _Owner]) -> str | None:
    """Who has the output in place of the owner of ``claim``; None: nobody."""
    # Numbers begin anew where an output was free in between, hence the nonce.
    rivals = [
        owner
        for name, owner in found.items()
        if name > claim.name or (name == claim.name and owner.nonce != claim.nonce)
    ]
    if rivals:
        return f"{claim.uri} was taken over by {_describe(rivals[-1])}: this job stops"
    if claim.name not in found:
        return f"the lock on {claim.uri} was taken away while this job held it: this job stops"
    return None


def machine_id() -> str:
    """Names this run of this machine (or container): within it, a process id means one process.

    Where the system names neither boot nor space of process ids, by its host's name.
    """
    try:
        return f"{_boot_id()}/{_pid_namespace()}"
    except OSError:
        return socket.gethostname()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _runs(owner: _Owner) -> bool:
    try:
        same = abs(_started_s(owner.pid) - owner.process_started_s) < 1.0
        return same and psutil.Process(owner.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _started_s(pid: int) -> float:
    """When a process began: seconds after the boot, which no turn of the clock changes, where it is known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return psutil.Process(pid).create_time()
    return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def _parse(data: bytes) -> _Owner:
    try:
        known = json.loads(data)
        return _Owner(**{field.name: known[field.name] for field in fields(_Owner)})
    except (ValueError, KeyError, TypeError):  # not written by us: as an owner long dead
        return _Owner("", "unknown", "", 0, 0.0, "an unknown job", 0.0, 0.0, 0.0, 0.0)


def _describe(owner: _Owner) -> str:
    since = datetime.fromtimestamp(owner.since_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"`{owner.job}` on {owner.host}, process {owner.pid}, since {since}"

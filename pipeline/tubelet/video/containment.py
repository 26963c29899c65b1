"""What a decoder process gives up before it sees the first byte of a file, layer by layer.

Each layer holds alone as far as it goes; the kernel decides which there are. The process has a clean
environment and no open file but its link already (see :mod:`tubelet.video.process`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from tubelet.video import seccomp
from tubelet.video.limits import Limits
from tubelet.video.seccomp import UnavailableError

LINK = 3
"""The number of the one descriptor that it keeps, beside those of nothing and of its complaints."""

# Of its own files: the link, the video, the clips, and what a codec doubles.
_MOST_OPEN = 64

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock, on all machines
_RULE_PATH_BENEATH, _GET_VERSION = 1, 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_CAPABILITY_VERSION_3 = 0x2008_0522


def hide_memory() -> None:
    """Close this process's memory, environment and open files to others of the same user (``/proc``, ptrace).

    It holds the secrets that its decoder processes must not get at. Debuggers of that user cannot look in
    either, and a crash leaves no core.
    """
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def contain(limits: Limits) -> list[str]:
    """Give up all that decoding does not need. Everything must have been imported.

    Returns:
        What the kernel lacks, a line for each layer.
    """
    lacking: list[str] = []
    _limit_resources(limits)
    _try(_no_new_privileges, lacking)
    landlocked = _try(_landlock, lacking)
    _try(_drop_capabilities, lacking)
    # Without Landlock no file can be opened at all, for nothing else tells one from another.
    _try(lambda: seccomp.install(os.getpid(), reads=landlocked), lacking)
    return lacking


def _try(layer: Callable[[], None], lacking: list[str]) -> bool:
    try:
        layer()
    except (UnavailableError, AttributeError) as error:  # AttributeError: no such function in the C library
        lacking.append(str(error))
        return False
    return True


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _failed(what: str) -> UnavailableError:
    number = ctypes.get_errno()
    return UnavailableError(f"{what}: {errno.errorcode.get(number, number)}")


def _limit_resources(limits: Limits) -> None:
    """Files (of memory, too) no larger than the clips may be; few of them; no cores."""
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.memory_bytes),
        (resource.RLIMIT_NOFILE, _MOST_OPEN),
    ):
        lower_limit(kind, most)


def lower_limit(kind: int, most: int) -> None:
    """Hold this process to ``most``, for good."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))


def _no_new_privileges() -> None:
    if sys.platform != "linux":
        raise UnavailableError(f"no new privileges: not on {sys.platform}")
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _failed("no new privileges")


def _drop_capabilities() -> None:
    """Root without its powers is a user like others, but for owning root's files."""
    if sys.platform != "linux":
        raise UnavailableError(f"capabilities: not on {sys.platform}")
    head = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    none = ctypes.create_string_buffer(bytes(24))
    if _libc().capset(head, none) != 0:
        raise _failed("capabilities")


def _landlock() -> None:
    """Files below :func:`readable` can be read; no other, nothing written, nobody reached or signalled."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise UnavailableError(f"Landlock: not on {sys.platform} {platform.machine()}")
    version = _system_call(_CREATE_RULESET, None, 0, _GET_VERSION)
    if version < 1:
        raise _failed("Landlock")
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    network = 3 if version >= 4 else 0  # TCP: bind, connect
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals of others
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = ctypes.create_string_buffer(struct.pack("=QQQ", files, network, scoped)[:size], size)
    ruleset = _system_call(_CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        raise _failed("Landlock")
    try:
        for folder in readable():
            _allow_reading(ruleset, folder)
        if _system_call(_RESTRICT_SELF, ruleset, 0) != 0:
            raise _failed("Landlock")
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, folder: Path) -> None:
    allowed = _READ_FILE | (_READ_FOLDER if folder.is_dir() else 0)
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, descriptor), 12)
        if _system_call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0) != 0:
            raise _failed("Landlock")
    finally:
        os.close(descriptor)


def _system_call(number: int, *arguments: object) -> int:
    packed = (item if isinstance(item, ctypes.Array) else ctypes.c_void_p(item) for item in arguments)  # type: ignore[arg-type]
    return int(_libc().syscall(ctypes.c_long(number), *packed))


def readable() -> list[Path]:
    """Where modules and libraries lie that may be loaded late: Python's, its packages', the system's."""
    packages = [sys.modules[name].__file__ for name in ("av", "numpy", "tubelet") if name in sys.modules]
    places = [
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(str(Path(file).parent) for file in packages if file),
        *(str(Path(prefix) / "lib") for prefix in (sys.prefix, sys.base_prefix)),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    ]
    return [path for path in map(Path, dict.fromkeys(places)) if path.exists()]

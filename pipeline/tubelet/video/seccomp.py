"""The system calls that a decoder needs; the kernel refuses it all others.

A filter is a program for the machine that the kernel has for packets (classic BPF): it looks at the number of
the call and at the words of its arguments, and ends with a verdict (linux/seccomp.h, linux/filter.h).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Mapping, Sequence

# name: (number on x86_64, number on aarch64), None where there is no such call (arch/*/syscall*.tbl).
_PLAIN: Mapping[str, tuple[int | None, int | None]] = {
    # memory
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "memfd_create": (319, 279),
    "ftruncate": (77, 46),
    # what is open: the link, the video, the clips
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "fstat": (5, 80),
    "fadvise64": (221, 223),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # modules that are imported late: what is there, and reading it where that is allowed
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    # threads of codecs
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "membarrier": (324, 283),
    # time, signals to oneself, and the end
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # who and where one is
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getrandom": (318, 278),
}
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_SYSCALL_SECCOMP = {"x86_64": 317, "aarch64": 277}
# These depend on their arguments.
_CLONE, _CLONE3, _IOCTL, _FCNTL, _PRCTL = (56, 220), (435, 435), (16, 29), (72, 25), (157, 167)
_OPEN, _OPENAT, _TGKILL, _PRLIMIT = (2, None), (257, 56), (234, 131), (302, 261)

_CLONE_THREAD = 0x0001_0000
_WRITES = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
# Whether a descriptor waits, and whether it outlives exec: no terminal, no device.
_IOCTLS = (0x5421, 0x5450, 0x5451)
# Names of threads; names of memory.
_PRCTLS = (15, 16, 0x53564D41)
# Descriptors doubled, their flags, seals. Above all no F_SETOWN: it has the kernel send signals to others.
_FCNTLS = (0, 1, 2, 3, 4, 1030, 1033, 1034)

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_SET_MODE_FILTER, _FLAG_TSYNC, _FLAG_SPEC_ALLOW = 1, 1, 4

Instruction = tuple[int, int, int, int]


class UnavailableError(Exception):
    """The kernel lacks what was asked of it; why."""


def _verdict(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _refuse(number: int) -> Instruction:
    return _verdict(_ERRNO | number)


def _argument(index: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index + (4 if high else 0))


def _case(number: int | None, body: Sequence[Instruction]) -> list[Instruction]:
    """``body``, which ends with a verdict, for one call."""
    return [] if number is None else [(_JUMP_EQUAL, 0, len(body), number), *body]


def _one_of(argument: int, values: Sequence[int], otherwise: int) -> list[Instruction]:
    """Allow the call where its argument is one of these."""
    tests: list[Instruction] = [(_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(argument), *tests, _refuse(otherwise), _verdict(_ALLOW)]


def program(machine: str, process: int, *, reads: bool) -> list[Instruction]:
    """The filter.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        process: id of the process that it is for: it may end itself.
        reads: files may be opened for reading (where something else decides which).
    """
    architecture, column = _ARCHITECTURES[machine]
    denied = errno.EACCES
    is_reading = [(_JUMP_ANY_BIT, 0, 1, _WRITES), _refuse(denied), _verdict(_ALLOW)]
    no_more_than_asked = [
        _argument(2),
        (_JUMP_EQUAL, 0, 2, 0),
        _argument(2, high=True),
        (_JUMP_EQUAL, 1, 0, 0),
        _refuse(errno.EPERM),
        _verdict(_ALLOW),
    ]
    out: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        _verdict(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":  # the calls of its 32-bit relative have numbers of their own from here on
        out += [(_JUMP_AT_LEAST, 0, 1, 0x4000_0000), _refuse(errno.ENOSYS)]
    for numbers in _PLAIN.values():
        out += _case(numbers[column], [_verdict(_ALLOW)])
    threads = [_argument(0), (_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD), _refuse(errno.EPERM), _verdict(_ALLOW)]
    out += _case(_CLONE[column], threads)
    # Its flags lie in memory, where a filter cannot look: the C library then takes the other one.
    out += _case(_CLONE3[column], [_refuse(errno.ENOSYS)])
    out += _case(_IOCTL[column], _one_of(1, _IOCTLS, errno.ENOTTY))
    for call, flags in ((_OPEN, 1), (_OPENAT, 2)):
        out += _case(call[column], [_argument(flags), *is_reading] if reads else [_refuse(errno.ENOENT)])
    out += _case(_TGKILL[column], _one_of(0, (process,), errno.EPERM))
    out += _case(_FCNTL[column], _one_of(1, _FCNTLS, errno.EPERM))
    out += _case(_PRCTL[column], _one_of(0, _PRCTLS, errno.EPERM))
    out += _case(_PRLIMIT[column], no_more_than_asked)
    return [*out, _refuse(errno.EPERM)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(process: int, *, reads: bool) -> None:
    """Put the filter on all threads of this process, for good; it must have given up new privileges.

    Raises:
        UnavailableError: the kernel, or the machine, has no such filters.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES or struct.calcsize("P") != 8:
        raise UnavailableError(f"no filter for {sys.platform} on {machine}")
    instructions = program(machine, process, reads=reads)
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *item) for item in instructions))
    head = _Program(len(instructions), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    # The filter itself is no reason to turn off a processor's speculation, which costs decoding dear.
    flags = _FLAG_TSYNC | _FLAG_SPEC_ALLOW
    call, mode = ctypes.c_long(_SYSCALL_SECCOMP[machine]), ctypes.c_ulong(_SET_MODE_FILTER)
    if libc.syscall(call, mode, ctypes.c_ulong(flags), ctypes.byref(head)) != 0:
        number = ctypes.get_errno()
        raise UnavailableError(f"seccomp filters: {errno.errorcode.get(number, number)}")

"""Code that runs in the decoder's process, as if a file had taken it over.

A test starts children with :func:`entry` in place of the usual one; there :func:`install` puts the payload
behind a source that no video is: the bytes ``b"attack"``. Nothing but a test can do so.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

from tubelet.video import child, containment, seccomp, wire
from tubelet.video.errors import DecodeError
from tubelet.video.info import VideoInfo
from tubelet.video.reply import Reply
from tubelet.video.wire import Kind

TRIGGER = b"attack"
FOLDER = [""]
ADDRESS = [0]
"""Of memory of the parent."""
LAYERS = ("capabilities", "landlock", "seccomp")


def entry(name: str, layers: Iterable[str] = LAYERS, folder: str = "/nonexistent", address: int = 0) -> str:
    """What the child runs."""
    return (
        "import json, sys; path, *given = map(json.loads, sys.argv[1:]); sys.path[:] = path; "
        f"from support import payloads; payloads.install({name!r}, {list(layers)!r}, {folder!r}, {address}); "
        "from tubelet.video.child import main; main(*given)"
    )


def install(name: str, layers: Iterable[str], folder: str, address: int) -> None:
    """In the child: answer the trigger with the payload ``name``, contained by these layers only."""
    payload, real = PAYLOADS[name], child.answer
    FOLDER[0], ADDRESS[0] = folder, address

    def answer(source: Any, *rest: Any) -> Reply:
        if isinstance(source, bytearray) and source == TRIGGER:
            try:
                return payload(rest[-1])
            except MemoryError:
                return Reply(failure=DecodeError("out_of_memory", "no memory"))
            except DecodeError as error:
                return Reply(failure=error)
        return real(source, *rest)

    def missing(*_: Any, **__: Any) -> None:
        raise seccomp.UnavailableError("left out by the test")

    child.answer = answer
    if "capabilities" not in layers:
        containment._drop_capabilities = missing
    if "landlock" not in layers:
        containment._landlock = missing
    if layers == ["seccomp", "reading"]:  # else it refuses all reading where Landlock does not choose
        really = seccomp.install
        seccomp.install = lambda process, reads: really(process, reads=True)
    if "seccomp" not in layers:
        seccomp.install = missing


def link() -> socket.socket:
    """The socket to the parent."""
    return socket.socket(fileno=os.dup(containment.LINK))


# What hangs, crashes and eats.


def hang(_: Any) -> Reply:
    time.sleep(3600)
    raise AssertionError


def crash(_: Any) -> Reply:
    ctypes.string_at(0)
    raise AssertionError


def speak(_: Any) -> Reply:
    os.write(2, b"spoken by the \x1b[31mchild\n")
    os._exit(3)


def bomb(_: Any) -> Reply:
    return Reply(failure=DecodeError("io_error", str(len(bytearray(3 << 30)))))


# What lies to the parent.


def oversized(_: Any) -> Reply:
    link().sendall(wire._HEAD.pack(Kind.REPLY, 1 << 40))
    return hang(_)


def pickled(_: Any) -> Reply:
    wire.send(link(), Kind.REPLY, b"cos\nsystem\n(S'touch " + FOLDER[0].encode() + b"/unpickled'\ntR.")
    return hang(_)


def noise(_: Any) -> Reply:
    link().sendall(os.urandom(4096))
    return hang(_)


def cut_off(_: Any) -> Reply:
    link().sendall(wire._HEAD.pack(Kind.REPLY, 1000) + b"x")
    os._exit(0)


def other_kind(_: Any) -> Reply:
    wire.send(link(), Kind.DATA, b"x")
    return hang(_)


def reads_beyond(_: Any) -> Reply:
    wire.send(link(), Kind.READ, wire.RANGE.pack(0, 1 << 50))
    return hang(_)


def forged_code(_: Any) -> Reply:
    return Reply(failure=DecodeError("credentials", "the store takes no key"))


def info(**given: Any) -> VideoInfo:
    """A description that fits its form."""
    plain: dict[str, Any] = {
        "str": "x",
        "int": 4,
        "float": 1.0,
        "bool": False,
    }
    fields = {
        field.name: plain[str(field.type).split(" ")[0]]
        for field in dataclasses.fields(VideoInfo)
        if field.name != "keyframes_s"
    }
    return VideoInfo(**{**fields, "keyframes_s": (0.0,), **given})


def too_large_shape(memory: Any) -> Reply:
    import numpy as np

    memory.allocate(48)
    return Reply(info=info(), shapes=((1, 1 << 20, 1 << 20, 3),), times_s=(np.zeros(1),))


def beyond_the_memory(memory: Any) -> Reply:
    import numpy as np

    memory.allocate(48)
    return Reply(info=info(), shapes=((1, 100, 100, 3),), times_s=(np.zeros(1),))


def memory_that_shrinks(_: Any) -> Reply:
    """Its reader would die of SIGBUS when it is cut off."""
    import numpy as np

    file = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, 48)
    reply = Reply(info=info(), shapes=((1, 4, 4, 3),), times_s=(np.zeros(1),), segment=1)
    wire.send(link(), Kind.REPLY, reply.to_bytes(), (file,))
    return hang(_)


def no_memory(_: Any) -> Reply:
    import numpy as np

    reply = Reply(info=info(), shapes=((1, 4, 4, 3),), times_s=(np.zeros(1),), segment=7)
    wire.send(link(), Kind.REPLY, reply.to_bytes(), (containment.LINK,))
    return hang(_)


# What looks for secrets, and for ways out. Each gives what it got, or raises OSError.


def _libc(name: str, *arguments: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, name)
    function.restype = ctypes.c_long
    if function(*map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), name)
    return "done"


def _fork() -> str:
    if os.fork() == 0:
        os.setsid()
        os._exit(0)
    return "done"


def _memory_of_parent() -> str:
    target, source = ctypes.create_string_buffer(8), (ctypes.c_void_p * 2)(ADDRESS[0], 8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(target), 8)
    return _libc("process_vm_readv", os.getppid(), ctypes.addressof(local), 1, ctypes.addressof(source), 1, 0)


def _own_signals() -> str:
    """Have the kernel send a signal of one's choice to the parent (here: of no consequence)."""
    import fcntl

    fcntl.fcntl(containment.LINK, fcntl.F_SETOWN, os.getppid())
    return "done"


def _raise_limit() -> str:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard + (1 << 30)))
    return "done"


def _stolen(directory: str) -> dict[str, Callable[[], str]]:
    parent = os.getppid()

    def read(path: str) -> str:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")

    def write(path: str) -> str:
        with open(path, "w", encoding="utf-8") as file:
            file.write("x")
        return "done"

    def listen() -> str:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
        return "done"

    def connect() -> str:
        with socket.socket() as client:
            client.settimeout(1)
            if client.connect_ex(("127.0.0.1", 9)) not in (0, errno.ECONNREFUSED):
                raise PermissionError
        return "done"

    return {
        "own environment": lambda: json.dumps(dict(os.environ)),
        "parent's environment": lambda: read(f"/proc/{parent}/environ"),
        "parent's memory by /proc": lambda: str(
            os.close(os.open(f"/proc/{parent}/mem", os.O_RDONLY)) or "done"
        ),
        "parent's memory by process_vm_readv": _memory_of_parent,
        "ptrace of the parent": lambda: _libc("ptrace", 0x4206, parent, 0, 0),
        "signal to the parent": lambda: str(os.kill(parent, 0) or "done"),
        "signal by F_SETOWN": _own_signals,
        "~/.aws/credentials": lambda: read(f"{directory}/.aws/credentials"),
        "/etc/passwd": lambda: read("/etc/passwd"),
        "file in /tmp": lambda: write(f"{directory}/written"),
        "link in /tmp": lambda: str(os.symlink("/etc/passwd", f"{directory}/link{os.getpid()}") or "done"),
        "connect": connect,
        "listen": listen,
        "unix socket": lambda: str(socket.socket(socket.AF_UNIX).close() or "done"),
        "fork": _fork,
        "exec": lambda: str(subprocess.run(["/bin/true"], check=True).returncode),
        "more memory": _raise_limit,
    }


def steal(_: Any) -> Reply:
    """Try all; the reply says what came of each."""
    found = {}
    for name, attempt in _stolen(FOLDER[0]).items():
        try:
            found[name] = attempt()[:4000]
        except Exception as error:
            number = getattr(error, "errno", None)
            found[name] = "refused: " + (errno.errorcode.get(number, str(number)) if number else repr(error))
    raise DecodeError("decode_error", json.dumps({k: v[:200] for k, v in found.items()}))


PAYLOADS: dict[str, Callable[[Any], Reply]] = {
    function.__name__: function
    for function in (
        hang, crash, speak, bomb, oversized, pickled, noise, cut_off, other_kind, reads_beyond, forged_code,
        too_large_shape, beyond_the_memory, memory_that_shrinks, no_memory, steal,
    )
}  # fmt: skip

"""Sources that misbehave, importable in the sandbox's child."""

from __future__ import annotations

import io
import os
import signal
import time


class Some(io.BytesIO):
    """An object with bytes in it."""

    def __init__(self) -> None:
        super().__init__(bytes(4096))


class Hang(Some):
    """An object whose store never answers."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(3600)
        return b""


class Crash(Some):
    """An object that takes the process with it."""

    def read(self, size: int | None = -1) -> bytes:
        os.kill(os.getpid(), signal.SIGSEGV)
        return b""


class Speaks(Some):
    """An object whose reader complains on stderr and ends the process."""

    def read(self, size: int | None = -1) -> bytes:
        os.write(2, b"spoken by the child\n")
        os._exit(3)


class Bomb(Some):
    """An object that eats memory."""

    def read(self, size: int | None = -1) -> bytes:
        self.eaten = bytearray(3 << 30)
        return b""


class Broken(Some):
    """An object that the network loses."""

    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionResetError("the network is gone")


def gone() -> io.BytesIO:
    """An object that is not there."""
    raise FileNotFoundError("s3://bucket/key")

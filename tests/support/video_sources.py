"""Objects whose store misbehaves."""

from __future__ import annotations

import io
import time


class Some(io.RawIOBase):
    """An object with bytes in it."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return 4096 if whence == io.SEEK_END else offset


class Hang(Some):
    """An object whose store never answers."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(3600)
        return b""


class Broken(Some):
    """An object that the network loses."""

    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionResetError("the network is gone")


def gone() -> io.BytesIO:
    """An object that is not there."""
    raise FileNotFoundError("s3://bucket/key")

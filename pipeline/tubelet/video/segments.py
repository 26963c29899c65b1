"""The parent's side of the shared memory that clips come back in."""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tubelet.video.wire import MalformedError

# Shared memory kept for use again: more replies than this are seldom looked at at a time.
_KEPT_SEGMENTS = 4
_KEPT_SEGMENT_BYTES = 64 << 20

# Memory that its maker may cut off kills who reads past the cut.
_F_GET_SEALS, _F_SEAL_SHRINK = 1034, 0x0002


class _Lease(npt.NDArray[np.uint8] if TYPE_CHECKING else np.ndarray):  # type: ignore[misc]
    """The memory of a reply; when the last clip in it is gone, the child may use it again."""


class Segments:
    """Shared memory of one child: what is mapped here, and what of it nobody looks at any more.

    Args:
        most_bytes: of one of them.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._mapped: dict[int, mmap.mmap] = {}
        self._free: list[int] = []  # appended to when arrays are freed, in any thread

    @property
    def known(self) -> tuple[int, ...]:
        """Segments that are kept for use."""
        return tuple(self._mapped)

    def pop_free(self) -> int | None:
        """A segment to write to."""
        return self._free.pop() if self._free else None

    def lease(self, segment: int, files: list[int], free: int | None) -> npt.NDArray[np.uint8]:
        """The memory of a reply, as an array that gives it back when it goes.

        Args:
            segment: its number.
            files: its descriptor, where it is new.
            free: the segment that the child was given to write to.

        Raises:
            MalformedError: it is not memory of the kind and size that a child makes, or in use.
        """
        if files:
            if segment in self._mapped or len(files) > 1:
                raise MalformedError("memory that is known")
            memory = self._map(files[0])
        elif segment == free and segment in self._mapped:
            memory = self._mapped[segment]
        else:
            raise MalformedError("memory that is not free")
        lease = np.frombuffer(memory, np.uint8).view(_Lease)
        if segment in self._mapped or (
            len(self._mapped) < _KEPT_SEGMENTS and len(memory) <= _KEPT_SEGMENT_BYTES
        ):
            self._mapped[segment] = memory
            weakref.finalize(lease, self._free.append, segment).atexit = False
        return lease

    def forget(self, segment: int) -> None:
        """A free segment that turned out too small."""
        self._mapped.pop(segment, None)

    def _map(self, file: int) -> mmap.mmap:
        try:
            size_bytes = os.fstat(file).st_size
            sealed = not hasattr(os, "memfd_create") or fcntl.fcntl(file, _F_GET_SEALS) & _F_SEAL_SHRINK
            if not sealed or not 0 < size_bytes <= self._most_bytes:
                raise MalformedError(f"memory of {size_bytes} bytes that may shrink or is too large")
            return mmap.mmap(file, size_bytes)
        except (OSError, ValueError) as error:
            raise MalformedError(f"no memory ({error})") from error

"""A seekable file over ranges of an object that lies far away, with a cache."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from typing_extensions import override

if TYPE_CHECKING:
    from typing_extensions import Buffer

# One request costs tens of milliseconds on S3: blocks that hold a header or a group of pictures pay for it.
BLOCK_BYTES = 256 * 1024
# A reader that goes straight on gets ever longer ranges, up to this many blocks a request.
_MAX_AHEAD = 16
# Where it is known what will be read, a request has up to this many.
_MAX_EXPECTED = 32
_CACHED_BLOCKS = 64

MOST_BYTES = _MAX_EXPECTED * BLOCK_BYTES
"""No single request of a reader with blocks of the default size is for more."""


class RangedReader(io.RawIOBase):
    """A read-only, seekable file over ``fetch(start, stop)``, with a cache of blocks.

    Attributes:
        fetch: gives the bytes from ``start`` to ``stop``; fewer only where the object ends before.
        size_bytes: of the object.
        bytes_fetched, requests: what was asked of ``fetch`` so far.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size_bytes: int,
        *,
        block_bytes: int = BLOCK_BYTES,
        cached_blocks: int = _CACHED_BLOCKS,
    ) -> None:
        super().__init__()
        self.fetch, self.size_bytes = fetch, size_bytes
        self._block_bytes = block_bytes
        self._cached_blocks = max(cached_blocks, _MAX_EXPECTED + 1)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        # A small object comes whole: a second request would cost more than its bytes.
        self._ahead = 4 if size_bytes <= 4 * block_bytes else 1
        self._next_block = -1
        self._expected = (0, 0)
        self.bytes_fetched = 0
        self.requests = 0

    def expect(self, begin: int, end: int) -> None:
        """The bytes from ``begin`` to ``end`` will be read: fetch them in large pieces, and none after."""
        self._expected = (begin, end)

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise OSError(22, f"seek to {base + offset}, before the start")
        self._position = base + offset
        return self._position

    @override
    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size_bytes - self._position))
        done = 0
        while done < wanted:
            number, offset = divmod(self._position, self._block_bytes)
            piece = memoryview(self._block(number))[offset : offset + wanted - done]
            if not piece:
                break  # the object is shorter than it was said to be
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        if number == self._next_block:
            self._ahead = min(self._ahead * 2, _MAX_AHEAD)
        elif self._next_block >= 0:
            self._ahead = 1
        self._load(number, self._count(number))
        return self._blocks[number]

    def _count(self, first: int) -> int:
        """How many blocks from ``first`` on are fetched at once: none that is there already."""
        begin, end = self._expected
        count = self._ahead
        if begin <= self._position < end:
            count = min(-(-end // self._block_bytes) - first, _MAX_EXPECTED)
        return next((i for i in range(1, count) if first + i in self._blocks), max(count, 1))

    def _load(self, first: int, count: int) -> None:
        start = first * self._block_bytes
        stop = min(start + count * self._block_bytes, self.size_bytes)
        data = self.fetch(start, stop)
        self.requests += 1
        self.bytes_fetched += len(data)
        for i in range(-(-(stop - start) // self._block_bytes)):
            self._blocks[first + i] = data[i * self._block_bytes : (i + 1) * self._block_bytes]
            self._blocks.move_to_end(first + i)
        self._next_block = first + count
        while len(self._blocks) > self._cached_blocks:
            self._blocks.popitem(last=False)

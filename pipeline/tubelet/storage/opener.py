"""Open an object as a seekable file whose bytes come in cached ranges."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import cachetools
from typing_extensions import override

from tubelet.storage.api import stat
from tubelet.storage.base import DEFAULT_OPTIONS, StorageOptions
from tubelet.storage.local import open_local
from tubelet.storage.registry import remote_store_for
from tubelet.storage.uris import is_remote, normalise_uri

if TYPE_CHECKING:
    from typing_extensions import Buffer

# One request costs tens of milliseconds on S3: blocks that hold a header or a group of pictures pay for it.
_BLOCK_BYTES = 256 * 1024
# A reader that goes straight on gets ever longer ranges, up to this many blocks a request.
_MAX_AHEAD = 16
_CACHED_BLOCKS = 64
# Epochs of a corpus of small objects ask for the same ones again and again; a request costs more processor
# time than decoding one. Only content that an etag pins is kept, each process for itself.
_KEPT_OBJECT_BYTES = _BLOCK_BYTES
_KEPT_BYTES = 64 * 1024 * 1024
_kept: cachetools.LRUCache[tuple[str, str], bytes] = cachetools.LRUCache(_KEPT_BYTES, getsizeof=len)


@dataclass(frozen=True)
class ObjectOpener:
    """Opens one object; picklable, so that it can be handed to another process.

    Attributes:
        uri: the object.
        size_bytes: its size (None: asked of the store).
        etag: the content that is meant; reading other content raises ``ObjectChangedError``. None: any.
        options: how to reach the store.
    """

    uri: str
    size_bytes: int | None = None
    etag: str | None = None
    options: StorageOptions = DEFAULT_OPTIONS

    def __call__(self) -> BinaryIO:
        """A fresh binary file, positioned at 0.

        Returns:
            The file itself if local, its bytes in memory if small and pinned by ``etag``, else a
            :class:`RangedReader`.

        Raises:
            FileNotFoundError: the object is gone.
            ObjectChangedError: its content is not that of ``etag``.
            CredentialsError: there are none, or the store does not take them.
            DeniedError: they do not give access to this object.
            StoreUnavailableError: the store failed although the request was retried.
        """
        uri = normalise_uri(self.uri)
        if not is_remote(uri):
            return cast("BinaryIO", open_local(uri, self.etag))
        size_bytes = self.size_bytes
        if size_bytes is None:
            found = stat(uri, self.options)
            if found is None:
                raise FileNotFoundError(f"{uri} does not exist")
            size_bytes = found.size_bytes
        fetch = remote_store_for(uri, self.options).fetcher(uri, self.etag)
        if self.etag is not None and 0 < size_bytes <= _KEPT_OBJECT_BYTES:
            return io.BytesIO(_whole((uri, self.etag), fetch, size_bytes))
        return cast("BinaryIO", RangedReader(fetch, size_bytes))


def _whole(name: tuple[str, str], fetch: Callable[[int, int], bytes], size_bytes: int) -> bytes:
    """A small object, from this process's memory if it was fetched before."""
    data = _kept.get(name)
    if data is None:
        data = _kept[name] = fetch(0, size_bytes)
    return data


class RangedReader(io.RawIOBase):
    """A read-only, seekable file over ``fetch(start, stop)``, with a cache of blocks.

    Attributes:
        bytes_fetched, requests: what was asked of the store so far.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size_bytes: int,
        *,
        block_bytes: int = _BLOCK_BYTES,
        cached_blocks: int = _CACHED_BLOCKS,
    ) -> None:
        super().__init__()
        self._fetch, self._size, self._block_bytes = fetch, size_bytes, block_bytes
        self._cached_blocks = max(cached_blocks, _MAX_AHEAD + 1)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        # A small object comes whole: a second request would cost more than its bytes.
        self._ahead = 4 if size_bytes <= 4 * block_bytes else 1
        self._next_block = -1
        self.bytes_fetched = 0
        self.requests = 0

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
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, f"seek to {base + offset}, before the start")
        self._position = base + offset
        return self._position

    @override
    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
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
        self._load(number, self._ahead)
        return self._blocks[number]

    def _load(self, first: int, count: int) -> None:
        start = first * self._block_bytes
        stop = min(start + count * self._block_bytes, self._size)
        data = self._fetch(start, stop)
        self.requests += 1
        self.bytes_fetched += len(data)
        for i in range(-(-(stop - start) // self._block_bytes)):
            self._blocks[first + i] = data[i * self._block_bytes : (i + 1) * self._block_bytes]
            self._blocks.move_to_end(first + i)
        self._next_block = first + count
        while len(self._blocks) > self._cached_blocks:
            self._blocks.popitem(last=False)

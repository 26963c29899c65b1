"""Open an object as a seekable file whose bytes come in cached ranges."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, cast

import cachetools

from tubelet.ranges import BLOCK_BYTES, RangedReader
from tubelet.storage.api import stat
from tubelet.storage.base import DEFAULT_OPTIONS, StorageOptions
from tubelet.storage.local import open_local
from tubelet.storage.registry import remote_store_for
from tubelet.storage.uris import is_remote, normalise_uri

# Epochs of a corpus of small objects ask for the same ones again and again; a request costs more processor
# time than decoding one. Only content that an etag pins is kept, each process for itself.
_KEPT_OBJECT_BYTES = BLOCK_BYTES
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

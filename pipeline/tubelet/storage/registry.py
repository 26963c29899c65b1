"""Which store holds a URI; a backend is imported when it is first asked for."""

from __future__ import annotations

import functools
import os
import threading
from importlib import import_module
from typing import cast

from tubelet.storage.base import DEFAULT_OPTIONS, RemoteStore, StorageOptions, Store
from tubelet.storage.uris import is_remote

# Module and class by the first five characters of a remote URI; by name, so that nothing here imports them.
_BACKENDS = {
    "s3://": ("tubelet.storage.s3", "S3Store"),
    "gs://": ("tubelet.storage.gcs", "GcsStore"),
    "": ("tubelet.storage.local", "LocalStore"),
}

# One client a process, store and options; a forked child must not share the parent's sockets, hence the pid.
_lock = threading.Lock()


def store_for(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> Store:
    """The store that holds the (normalised) ``uri``."""
    with _lock:
        return _store(uri[:5] if is_remote(uri) else "", options, os.getpid(), _environment())


def _environment() -> tuple[str | None, ...]:
    """What a client takes from the environment when it is made; another value needs another client."""
    return tuple(value for name, value in sorted(os.environ.items()) if name.startswith("AWS_"))


def remote_store_for(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> RemoteStore:
    """The object store that holds the (normalised, remote) ``uri``."""
    return cast("RemoteStore", store_for(uri, options))


@functools.lru_cache(maxsize=8)
def _store(scheme: str, options: StorageOptions, pid: int, environment: tuple[str | None, ...]) -> Store:
    del pid, environment  # they are in the key of the cache only
    module, name = _BACKENDS[scheme]
    return cast("Store", getattr(import_module(module), name)(options))

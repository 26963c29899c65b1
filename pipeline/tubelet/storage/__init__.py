"""Local folders, S3 and Google Cloud Storage behind one set of functions that take a URI or a plain path.

URIs: ``s3://bucket/key`` and ``gs://bucket/key`` are taken literally (no percent-decoding: keys may hold
spaces, ``%``, ``#``, ``?`` and ``+``); ``file://`` URIs are percent-decoded (RFC 8089) and, like plain
paths, become absolute local paths. Credentials and endpoints come from the usual places: ``AWS_*``
variables, profiles, roles, session tokens, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``.

Local folders are listed in the order of the UTF-8 bytes of the path, as S3 does; other stores in their own.
"""

from __future__ import annotations

from tubelet.storage.api import (
    check_conditions,
    copy,
    delete,
    delete_tree,
    download_dir,
    download_file,
    exists,
    filesystem,
    is_hidden,
    list_folders,
    list_names,
    list_objects,
    matches,
    put_if_absent,
    put_if_unchanged,
    read_bytes,
    read_version,
    signed_url,
    stat,
    upload_dir,
    upload_file,
    walk,
    write_bytes,
)
from tubelet.storage.base import (
    DEFAULT_OPTIONS,
    Conditions,
    ObjectInfo,
    RemoteStore,
    StorageOptions,
    Store,
    write_if_unchanged,
)
from tubelet.storage.errors import (
    CredentialsError,
    DeniedError,
    DiskFullError,
    ObjectChangedError,
    StoreUnavailableError,
    is_transient,
)
from tubelet.storage.registry import (
    remote_store_for,
    store_for,
)
from tubelet.storage.retries import with_retries
from tubelet.storage.uris import (
    is_remote,
    join,
    name_of,
    normalise_uri,
    parent,
    split_bucket,
)

__all__ = [
    "DEFAULT_OPTIONS",
    "Conditions",
    "CredentialsError",
    "DeniedError",
    "DiskFullError",
    "ObjectChangedError",
    "ObjectInfo",
    "RemoteStore",
    "StorageOptions",
    "Store",
    "StoreUnavailableError",
    "check_conditions",
    "copy",
    "delete",
    "delete_tree",
    "download_dir",
    "download_file",
    "exists",
    "filesystem",
    "is_hidden",
    "is_remote",
    "is_transient",
    "join",
    "list_folders",
    "list_names",
    "list_objects",
    "matches",
    "name_of",
    "normalise_uri",
    "parent",
    "put_if_absent",
    "put_if_unchanged",
    "read_bytes",
    "read_version",
    "remote_store_for",
    "signed_url",
    "split_bucket",
    "stat",
    "store_for",
    "upload_dir",
    "upload_file",
    "walk",
    "with_retries",
    "write_bytes",
    "write_if_unchanged",
]

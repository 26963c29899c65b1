"""URIs and plain paths: what they name, without asking a store."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from tubelet.config import UserError

_REMOTE = ("s3://", "gs://")


def normalise_uri(uri: str | os.PathLike[str]) -> str:
    """An absolute path for local files, ``s3://bucket/key`` or ``gs://bucket/key`` without a trailing slash.

    Raises:
        UserError: a scheme other than ``s3``, ``gs`` and ``file``; a bucket without a name.
    """
    text = os.fspath(uri)
    for scheme in _REMOTE:
        if text.lower().startswith(scheme):
            rest = text[len(scheme) :].rstrip("/")
            if not rest.split("/", 1)[0]:
                raise UserError(f"{text!r} names no bucket: write {scheme}BUCKET/PREFIX")
            return scheme + rest
    if text.lower().startswith("file:"):
        parts = urlsplit(text.replace("?", "%3F").replace("#", "%23"))
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{text!r} names the host {parts.netloc!r}: write file:///PATH for a local file")
        # Bytes that are no UTF-8 become what Python makes of them in file names.
        return os.path.abspath(unquote(parts.path, errors="surrogateescape"))
    scheme, sep, _ = text.partition("://")
    if sep and scheme.isalnum():
        raise UserError(
            f"cannot read {text!r}: the scheme is {scheme!r}; use s3://, gs://, file:// or a plain path"
        )
    if not text:
        raise UserError("an empty path was given: name a folder, or a URI such as s3://BUCKET/PREFIX")
    return os.path.abspath(os.path.expanduser(text))


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether ``uri`` lies in an object store, and so can be reached from other machines."""
    return os.fspath(uri).lower().startswith(_REMOTE)


def join(uri: str | os.PathLike[str], *parts: str) -> str:
    """``uri`` with ``parts`` below it."""
    return "/".join([normalise_uri(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def parent(uri: str | os.PathLike[str]) -> str:
    """The folder, prefix or bucket that holds ``uri``."""
    return normalise_uri(normalise_uri(uri).rpartition("/")[0] or "/")


def name_of(uri: str | os.PathLike[str]) -> str:
    """The last part of ``uri``."""
    return normalise_uri(uri).rpartition("/")[2]


def split_bucket(uri: str) -> tuple[str, str]:
    """``(bucket, key)`` of a normalised remote URI; the key of a bare bucket is empty."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key

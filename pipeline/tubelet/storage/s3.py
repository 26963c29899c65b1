"""S3 (and stores that speak its protocol) through boto3."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ProfileNotFound,
)
from typing_extensions import override

from tubelet.config import UserError
from tubelet.storage.base import Conditions, ObjectInfo, RemoteStore, StorageOptions, write_if_unchanged
from tubelet.storage.errors import local_writes
from tubelet.storage.retries import with_retries
from tubelet.storage.s3_errors import CONFLICT, MISSING, code_of, explained
from tubelet.storage.s3_listing import list_keys
from tubelet.storage.s3_reads import BrokenAnswerError, ObjectReader, opaque
from tubelet.storage.uris import split_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef
    from pyarrow.fs import FileSystem

# S3 takes objects of up to 5 GiB in one put; beyond this size boto3 sends parts side by side.
_MULTIPART_BYTES = 32 * 1024 * 1024
# What stores answer that do not know a header of a put.
_NOT_KNOWN = {"501", "NotImplemented", "InvalidArgument", "InvalidRequest", "UnsupportedHeader"}
# What was found out of stores, by endpoint and bucket.
_known: dict[tuple[str, str], Conditions] = {}


class NoConditionsError(UserError):
    """The store knows no conditional puts."""


def make_client(options: StorageOptions) -> S3Client:
    """A client that honours ``AWS_*``, profiles and ``AWS_ENDPOINT_URL``, and retries what is transient.

    Raises:
        UserError: the profile does not exist, or the endpoint is no URL.
    """
    settings: dict[str, Any] = {
        # throttling, 5xx and broken connections: retried with jittered back-off inside botocore
        "retries": {"mode": "standard", "max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS") or 8)},
        "max_pool_connections": 64,
        "connect_timeout": 10,
        "read_timeout": 60,
        # the newer default of sending checksums as trailers is refused by several S3-compatible stores
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if options.anonymous:
        settings["signature_version"] = UNSIGNED
    else:
        settings["signature_version"] = (
            "s3v4"  # of links, too: by default they get the old one, which dies out
        )
    try:
        # a session of our own: boto3's default one keeps the first profile and region it saw
        return boto3.session.Session().client("s3", config=Config(**settings))
    except ProfileNotFound as error:
        raise UserError(f"{error}: set AWS_PROFILE to a profile of your AWS configuration") from error
    except ValueError as error:  # "Invalid endpoint: ..."
        raise UserError(f"{error}: set AWS_ENDPOINT_URL to a URL such as http://HOST:PORT") from error


class S3Store(RemoteStore):
    """Objects in S3 buckets."""

    def __init__(self, options: StorageOptions) -> None:
        self._options = options
        self._client = make_client(options)
        self._filesystem: FileSystem | None = None
        self._lock = threading.Lock()

    @override
    def stat(self, uri: str) -> ObjectInfo | None:
        head = self._head(uri)
        if head is None:
            return None
        return ObjectInfo(uri, uri.rpartition("/")[2], opaque(head["ETag"]), head["ContentLength"])

    def _head(self, uri: str) -> HeadObjectOutputTypeDef | None:
        bucket, key = split_bucket(uri)
        if not key:
            return None
        with _translated(uri, self._client):
            try:
                return self._client.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                raise

    @override
    def walk(self, uri: str) -> Iterator[ObjectInfo]:
        bucket, key = split_bucket(uri)
        prefix = f"{key}/" if key else ""
        found = False
        with _translated(uri, self._client):
            translated = partial(_translated, uri, self._client)
            for item in list_keys(self._client, bucket, prefix, translated=translated):
                found = True
                path = item["Key"][len(prefix) :]
                if path and not path.endswith("/"):  # `folder/` is an empty marker some tools leave
                    yield ObjectInfo(f"s3://{bucket}/{item['Key']}", path, opaque(item["ETag"]), item["Size"])
        if not found:
            single = self.stat(uri)
            if single is None:
                raise UserError(f"there is nothing under {uri}: check the bucket and the prefix")
            yield single

    @override
    def holds_any(self, uri: str) -> bool:
        bucket, key = split_bucket(uri)
        pages = self._pages(uri, Bucket=bucket, Prefix=f"{key}/" if key else "")
        return any(not item["Key"].endswith("/") for page in pages for item in page.get("Contents", ()))

    @override
    def names(self, uri: str) -> list[str]:
        files, folders = self._directly_under(uri)
        return sorted(files | folders)

    @override
    def folders(self, uri: str) -> list[str]:
        return sorted(self._directly_under(uri)[1])

    def _directly_under(self, uri: str) -> tuple[set[str], set[str]]:
        bucket, key = split_bucket(uri)
        prefix = f"{key}/" if key else ""
        files: set[str] = set()
        folders: set[str] = set()
        for page in self._pages(uri, Bucket=bucket, Prefix=prefix, Delimiter="/"):
            files |= {item["Key"][len(prefix) :] for item in page.get("Contents", ())}
            folders |= {item["Prefix"][len(prefix) : -1] for item in page.get("CommonPrefixes", ())}
        return files - {""}, folders - {""}

    @override
    def read(self, uri: str) -> bytes:
        return self.read_version(uri)[0]

    @override
    def read_version(self, uri: str) -> tuple[bytes, str]:
        return ObjectReader(self._client, uri).whole()

    @override
    def write(self, uri: str, data: bytes) -> None:
        bucket, key = split_bucket(uri)
        with _translated(uri, self._client):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    @override
    def put_if_absent(self, uri: str, data: bytes) -> bool:
        if self._options.single_writer and not self._conditions(uri).absent:
            if self.stat(uri) is not None:
                return False
            self.write(uri, data)
            return True
        return self._put_if(uri, data, IfNoneMatch="*")

    @override
    def put_if_unchanged(self, uri: str, data: bytes, etag: str) -> bool:
        if not self._conditions(uri).unchanged:
            return write_if_unchanged(self, uri, data, etag)
        if self._put_if(uri, data, IfMatch=f'"{etag}"'):
            return True
        head = self._head(uri)
        if head is None or opaque(head["ETag"]) != etag:
            return False
        # Unchanged, and refused all the same: the store's etags are weak, and no condition on one ever holds.
        _known[self._place(uri)] = Conditions(absent=self._conditions(uri).absent, unchanged=False)
        return write_if_unchanged(self, uri, data, etag)

    @override
    def check_conditions(self, uri: str) -> Conditions:
        probe = f"{uri}/probe-{secrets.token_hex(4)}"
        try:
            self._put_if(probe, b"probe", IfNoneMatch="*")
            absent = not self._put_if(probe, b"probe", IfNoneMatch="*")
            unchanged = absent and not self._put_if(probe, b"probe", IfMatch=f'"{"0" * 32}"')
        except NoConditionsError:
            absent = unchanged = False
        finally:
            self.delete(probe)
        found = _known[self._place(uri)] = Conditions(absent, unchanged)
        return found

    def _conditions(self, uri: str) -> Conditions:
        """What is known of the store; until it was asked, the best."""
        return _known.get(self._place(uri), Conditions())

    def _place(self, uri: str) -> tuple[str, str]:
        return self._client.meta.endpoint_url, split_bucket(uri)[0]

    def _put_if(self, uri: str, data: bytes, **condition: str) -> bool:
        """Write where the condition holds; returns whether it did.

        Raises:
            NoConditionsError: the store knows no conditions.
        """
        bucket, key = split_bucket(uri)
        with _translated(uri, self._client):
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=data, **condition)  # type: ignore[arg-type]
            except ClientError as error:
                if code_of(error) in CONFLICT | (MISSING if "IfMatch" in condition else set()):
                    return False
                if code_of(error) in _NOT_KNOWN:
                    raise NoConditionsError(
                        f"the store of {uri} at {self._client.meta.endpoint_url} knows no conditional puts:"
                        " use another store, or --single-writer where you let one job at a time write"
                    ) from error
                raise
        return True

    @override
    def upload(self, local: Path, uri: str) -> None:
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig

        bucket, key = split_bucket(uri)
        transfer = TransferConfig(multipart_threshold=_MULTIPART_BYTES, multipart_chunksize=_MULTIPART_BYTES)
        with _translated(uri, self._client):
            try:
                self._client.upload_file(str(local), bucket, key, Config=transfer)
            except S3UploadFailedError as error:
                if isinstance(error.__context__, (ClientError, BotoCoreError)):
                    raise error.__context__ from error
                raise

    @override
    def download(self, uri: str, local: Path) -> None:
        with_retries(
            lambda: self._download(uri, local), retry_on=BrokenAnswerError, attempts=5, first_pause_s=0.2
        )

    def _download(self, uri: str, local: Path) -> None:
        head = self._head(uri)
        if head is None:
            raise FileNotFoundError(f"{uri} does not exist")
        bucket, key = split_bucket(uri)
        with local_writes(local), _translated(uri, self._client):
            self._client.download_file(bucket, key, str(local))
        if local.stat().st_size != head["ContentLength"]:
            local.unlink()
            raise BrokenAnswerError(f"reading {uri} failed: {head['ContentLength']} bytes were to come")

    @override
    def copy(self, uri: str, target: str) -> None:
        (bucket, key), (to_bucket, to_key) = split_bucket(uri), split_bucket(target)
        with _translated(uri, self._client):
            try:
                self._client.copy({"Bucket": bucket, "Key": key}, to_bucket, to_key)
            except ClientError as error:
                if code_of(error) in MISSING:
                    raise FileNotFoundError(f"{uri} does not exist") from error
                raise

    @override
    def delete(self, uri: str) -> None:
        bucket, key = split_bucket(uri)
        with _translated(uri, self._client):
            self._client.delete_object(Bucket=bucket, Key=key)

    @override
    def delete_tree(self, uri: str) -> None:
        bucket, key = split_bucket(uri)
        if not key:
            raise UserError(f"refusing to empty the whole bucket {bucket!r}: name a prefix in it")
        for page in self._pages(uri, Bucket=bucket, Prefix=f"{key}/"):
            keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
            if keys:
                with _translated(uri, self._client):
                    self._client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})  # type: ignore[typeddict-item]
        self.delete(uri)

    @override
    def signed_url(self, uri: str, lifetime_s: int) -> str | None:
        bucket, key = split_bucket(uri)
        with _translated(uri, self._client):
            return self._client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=lifetime_s
            )

    @override
    def filesystem(self, uri: str) -> tuple[FileSystem, str]:
        with self._lock:
            if self._filesystem is None:
                self._filesystem = self._make_filesystem()
        return self._filesystem, uri.removeprefix("s3://")

    def _make_filesystem(self) -> FileSystem:
        from pyarrow.fs import S3FileSystem

        # PyArrow finds credentials as boto3 does, but not always the endpoint: hand over what boto3 found.
        meta = self._client.meta
        custom = not meta.endpoint_url.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        settings: dict[str, Any] = {"anonymous": True} if self._options.anonymous else {}
        if custom:
            settings["endpoint_override"] = meta.endpoint_url
        if meta.region_name and meta.region_name != "aws-global":
            settings["region"] = meta.region_name
        return S3FileSystem(**settings)

    @override
    def fetcher(self, uri: str, etag: str | None) -> Callable[[int, int], bytes]:
        return ObjectReader(self._client, uri, etag).range

    def _pages(self, uri: str, **request: str) -> Iterator[Any]:
        with _translated(uri, self._client):
            yield from self._client.get_paginator("list_objects_v2").paginate(**request)  # type: ignore[arg-type]


@contextlib.contextmanager
def _translated(uri: str, client: S3Client) -> Iterator[None]:
    """Turn errors of the store into our own (see :mod:`tubelet.storage.errors`)."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise explained(error, uri, client.meta.endpoint_url) from error

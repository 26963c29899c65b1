"""Reading an object of S3: every answer is checked for being the bytes that were asked for."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import urllib3
from botocore.exceptions import BotoCoreError, ClientError

from tubelet.storage.errors import ObjectChangedError, StoreUnavailableError
from tubelet.storage.retries import with_retries
from tubelet.storage.s3_errors import code_of, explained
from tubelet.storage.uris import split_bucket

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# botocore repeats requests, but not the reading of a body; so often is that tried.
_ATTEMPTS = 5
_PAUSES_S = (0.2, 5.0)
_CHUNK_BYTES = 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

_lock = threading.Lock()
# Endpoints of which it was said that they ignore ranges.
_said: set[str] = set()
# Endpoints whose etags do not serve as conditions.
_weak: set[str] = set()


class BrokenAnswerError(StoreUnavailableError):
    """The body broke off, or holds other bytes than those asked for."""


def opaque(etag: str) -> str:
    """An etag without quotes and without the mark of a weak one, as manifests hold it."""
    return etag.removeprefix("W/").strip('"')


class ObjectReader:
    """Reads one object.

    Args:
        client: the store.
        uri: the object.
        etag: the content that is meant; None: any.
    """

    def __init__(self, client: S3Client, uri: str, etag: str | None = None) -> None:
        self._client, self._uri = client, uri
        self._etag = None if etag is None else opaque(etag)
        self._endpoint = client.meta.endpoint_url

    def range(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``.

        Raises:
            FileNotFoundError: the object is gone.
            ObjectChangedError: it has other content, or is shorter than ``stop``.
            CredentialsError, DeniedError: the store does not let us.
            StoreUnavailableError: it is away, or broke its answer off time and again.
        """
        return self._retried(lambda: self._range(start, stop))

    def whole(self) -> tuple[bytes, str]:
        """All bytes, and their etag. Raises as :meth:`range` does."""
        return self._retried(self._whole)

    def _retried(self, action: Callable[[], _T]) -> _T:
        return with_retries(
            action,
            retry_on=BrokenAnswerError,
            attempts=_ATTEMPTS,
            first_pause_s=_PAUSES_S[0],
            most_pause_s=_PAUSES_S[1],
        )

    def _range(self, start: int, stop: int) -> bytes:
        try:
            answer = self._request(Range=f"bytes={start}-{stop - 1}")
        except _EmptyError as error:
            raise self._changed() from error
        body = answer["Body"]
        found = _content_range(answer)
        if found is None:
            size_bytes = answer["ContentLength"]
            if start > 0 or size_bytes > stop:
                self._say_ignores_ranges()
            skip = start
        else:
            first, last, size_bytes = found
            if first != start or last != min(stop, size_bytes) - 1:
                body.close()
                raise self._broken(f"the bytes {first} to {last} in place of {start} to {stop - 1}")
            skip = 0
        if size_bytes < stop:
            body.close()
            raise self._changed()
        return self._body(body, skip, stop - start)

    def _whole(self) -> tuple[bytes, str]:
        # The answer to a range says how many bytes there are, the one to a plain request how many will come.
        try:
            answer = self._request(Range="bytes=0-")
        except _EmptyError:
            answer = self._request()
        found = _content_range(answer)
        size_bytes = answer["ContentLength"] if found is None else found[2]
        if found is not None and found[0] != 0:
            answer["Body"].close()
            raise self._broken(f"bytes from {found[0]} in place of all")
        return self._body(answer["Body"], 0, size_bytes), opaque(answer.get("ETag", ""))

    def _request(self, **more: str) -> Mapping[str, Any]:
        """One answer of the content that is meant, its body unread."""
        bucket, key = split_bucket(self._uri)
        conditional = self._etag is not None and self._endpoint not in _weak
        match = {"IfMatch": f'"{self._etag}"'} if conditional else {}
        try:
            answer: Mapping[str, Any] = self._client.get_object(Bucket=bucket, Key=key, **more, **match)  # type: ignore[arg-type]
        except ClientError as error:
            if conditional and code_of(error) in ("412", "PreconditionFailed"):
                return self._unconditional(more)
            if code_of(error) == "InvalidRange":
                raise _EmptyError from error
            if code_of(error) == "NoSuchBucket":
                raise FileNotFoundError(f"{self._uri} is gone") from error
            raise explained(error, self._uri, self._endpoint) from error
        except BotoCoreError as error:
            raise explained(error, self._uri, self._endpoint) from error
        etag = opaque(answer.get("ETag") or "")
        if self._etag is not None and etag and etag != self._etag:
            answer["Body"].close()
            raise self._changed()
        return answer

    def _unconditional(self, more: Mapping[str, str]) -> Mapping[str, Any]:
        """The answer without condition, after one failed although the content did not change.

        No condition on a weak etag ever holds. A changed content raises ``ObjectChangedError``.
        """
        answer = ObjectReader(self._client, self._uri)._request(**more)
        if opaque(answer.get("ETag") or "") != self._etag:
            answer["Body"].close()
            raise self._changed()
        with _lock:
            _weak.add(self._endpoint)
        return answer

    def _body(self, body: StreamingBody, skip: int, count: int) -> bytes:
        """``count`` bytes after the first ``skip``."""
        chunks, left, cause = [], count, None
        try:
            while skip > 0 and (chunk := body.read(min(skip, _CHUNK_BYTES))):
                skip -= len(chunk)
            while left > 0 and (chunk := body.read(left)):
                chunks.append(chunk)
                left -= len(chunk)
        except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
            cause = error
        finally:
            body.close()
        if left:
            raise self._broken(f"its answer off after {count - left} of {count} bytes", "broke") from cause
        return b"".join(chunks)

    def _changed(self) -> ObjectChangedError:
        return ObjectChangedError(f"{self._uri} changed since it was listed")

    def _broken(self, what: str, verb: str = "sent") -> BrokenAnswerError:
        return BrokenAnswerError(f"reading {self._uri} failed: the store at {self._endpoint} {verb} {what}")

    def _say_ignores_ranges(self) -> None:
        with _lock:
            known = self._endpoint in _said
            _said.add(self._endpoint)
        if not known:
            _log.warning(
                "the store at %s ignores ranges: each read of a part fetches all before it, which is slow",
                self._endpoint,
            )


class _EmptyError(OSError):
    """There are no bytes in the range: the object is empty, or shorter."""


def _content_range(answer: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """First and last byte, and the object's size; None where the answer is the whole object."""
    found = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    return first, last, last + 1 if found[3] == "*" else int(found[3])

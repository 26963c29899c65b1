"""Conditional writes to Google's store: PyArrow's filesystem has none, Google's own client has."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from tubelet.config import UserError
from tubelet.storage.base import Conditions
from tubelet.storage.errors import CredentialsError, DeniedError, StoreUnavailableError
from tubelet.storage.range_listing import Item, Page, list_in_ranges

_ABSENT = 0  # the generation of what does not exist
_TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces of an answer
_AWAY = (
    api.ServerError,
    api.TooManyRequests,
    api.RetryError,
    auth.TransportError,
    RequestException,
    ConnectionError,
)


_LISTED = "items(name,size,updated),prefixes,nextPageToken"


class GoogleConditions:
    """Reads and writes objects by their generation, a number that each write of an object raises.

    Args:
        endpoint: the server; None: Google's.
        anonymous: no credentials are looked for.
        retry_s: for how long a request is tried again.
        hint: what to do where the store cannot be reached.
    """

    def __init__(self, endpoint: str | None, *, anonymous: bool, retry_s: float, hint: str) -> None:
        self._hint = hint
        self._request = {"timeout": _TIMEOUT_S, "retry": DEFAULT_RETRY.with_timeout(retry_s)}
        nobody = AnonymousCredentials() if anonymous else None  # type: ignore[no-untyped-call]
        place = {"api_endpoint": endpoint} if endpoint else None
        with self._translated("gs://"):
            self._client = Client(project=None, credentials=nobody, client_options=place)

    def read(self, uri: str) -> tuple[bytes, str]:
        """An object and its generation.

        Raises:
            FileNotFoundError: there is none.
        """
        while True:
            blob = self._blob(uri)
            with self._translated(uri):
                try:
                    blob.reload(**self._request)
                    generation = int(blob.generation)
                    data = blob.download_as_bytes(if_generation_match=generation, **self._request)
                except api.NotFound as error:
                    raise FileNotFoundError(f"{uri} does not exist") from error
                except api.PreconditionFailed:
                    continue  # replaced between the two requests
            return bytes(data), str(generation)

    def put(self, uri: str, data: bytes, generation: int = _ABSENT) -> bool:
        """Write where the object is of ``generation`` (by default: where there is none); whether it was."""
        with self._translated(uri):
            try:
                self._blob(uri).upload_from_string(
                    data, "application/octet-stream", if_generation_match=generation, **self._request
                )
            except api.PreconditionFailed:
                return False
            except api.NotFound:
                if generation == _ABSENT:
                    raise
                return False
        return True

    def ask(self, uri: str) -> Conditions:
        """Which conditional puts the server honours below ``uri``; emulators may ignore them."""
        probe = f"{uri}/probe-{secrets.token_hex(4)}"
        try:
            self.put(probe, b"probe")
            absent = not self.put(probe, b"probe")
            return Conditions(absent, unchanged=absent and not self.put(probe, b"probe", 1))
        finally:
            with self._translated(probe), contextlib.suppress(api.NotFound):
                self._blob(probe).delete(**self._request)

    def list_objects(self, bucket: str, prefix: str) -> Iterator[Any]:
        """The blobs below ``prefix`` in the order of their names, by several requests at once."""
        return (blob for _, blob in list_in_ranges(_GoogleLister(self, bucket, prefix)))

    def ask_page(self, bucket: str, **request: Any) -> tuple[list[Any], list[str], str | None]:
        """One page of a listing: blobs, folders, and the token of the next page."""
        with self._translated(f"gs://{bucket}"):
            found = self._client.list_blobs(bucket, fields=_LISTED, **request, **self._request)
            blobs = list(next(found.pages, ()))
            return blobs, sorted(found.prefixes), found.next_page_token

    def _blob(self, uri: str) -> Any:
        bucket, _, key = uri.removeprefix("gs://").partition("/")
        return self._client.bucket(bucket).blob(key)

    @contextlib.contextmanager
    def _translated(self, uri: str) -> Iterator[None]:
        """Turn what Google's client says into our own errors (see :mod:`tubelet.storage.errors`)."""
        try:
            yield
        except _AWAY as error:
            raise self._error(StoreUnavailableError, uri, error) from error
        except (api.Unauthorized, auth.GoogleAuthError) as error:
            raise self._error(CredentialsError, uri, error) from error
        except api.Forbidden as error:
            raise self._error(DeniedError, uri, error) from error
        except api.GoogleAPIError as error:
            raise self._error(UserError, uri, error) from error

    def _error(self, kind: type[Exception], uri: str, error: Exception) -> Exception:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        return kind(f"cannot reach {uri}: {reason}; {self._hint}")


class _GoogleLister:
    """Google begins a listing with a name, where S3 begins after one."""

    def __init__(self, client: GoogleConditions, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix

    def page(self, after: str | None, most: int) -> tuple[Page, bool]:
        request = {"prefix": self._prefix, "page_size": most if after is None else most + 1}
        blobs, _, token = self._client.ask_page(self._bucket, start_offset=after, **request)
        return [(blob.name, blob) for blob in blobs if blob.name != after], token is not None

    def folders(self, token: Any) -> tuple[list[str], Any]:
        request = {"prefix": self._prefix, "delimiter": "/", "page_token": token}
        _, folders, following = self._client.ask_page(self._bucket, **request)
        return folders, following

    def one_after_the_other(self) -> Iterator[Item]:
        token = None
        while True:
            blobs, _, token = self._client.ask_page(self._bucket, prefix=self._prefix, page_token=token)
            yield from ((blob.name, blob) for blob in blobs)
            if token is None:
                return

"""What S3's error codes and botocore's exceptions mean, as errors of :mod:`tubelet.storage.errors`."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own name
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)

from tubelet.config import UserError
from tubelet.storage.errors import CredentialsError, DeniedError, ObjectChangedError, StoreUnavailableError
from tubelet.storage.uris import split_bucket

MISSING = {"404", "NoSuchKey", "NotFound"}
CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_DENIED = {"403", "401", "AccessDenied", "Forbidden", "Unauthorized", "AllAccessDisabled", "AccountProblem"}
_BAD_CREDENTIALS = {
    "400",  # all that the answer to a HEAD says of an expired token
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_WRONG_BUCKET = {"InvalidBucketName", "PermanentRedirect", "IllegalLocationConstraintException"}
_OVERLOADED = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    TokenRetrievalError,
    SSOError,
)
_BROKEN_OFF = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError)
_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or AWS_PROFILE;"
    " --anonymous reads a public bucket"
)


def code_of(error: ClientError) -> str:
    """The store's code, such as ``NoSuchKey``; the HTTP status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def explained(error: ClientError | BotoCoreError, uri: str, endpoint: str) -> Exception:
    """The error to raise in place of ``error``, which a request about ``uri`` to ``endpoint`` ended with."""
    if isinstance(error, ClientError):
        return _refused(error, uri, endpoint)
    if isinstance(error, _NO_CREDENTIALS):
        return CredentialsError(f"no credentials to reach {uri}: {_CREDENTIALS_HINT}")
    if isinstance(error, _BROKEN_OFF):
        return StoreUnavailableError(
            f"cannot reach the store of {uri} at {endpoint}: check AWS_ENDPOINT_URL and the network"
        )
    return UserError(f"cannot use {uri}: {_first_line(error)}")


def _refused(error: ClientError, uri: str, endpoint: str) -> Exception:
    code, (bucket, _) = code_of(error), split_bucket(uri)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    meanings: list[tuple[bool, type[Exception], str]] = [
        (code in MISSING, FileNotFoundError, f"{uri} does not exist"),
        (code in CONFLICT, ObjectChangedError, f"{uri} changed since it was listed"),
        (
            code in _BAD_CREDENTIALS,
            CredentialsError,
            f"the store refused the credentials for {uri} ({code}): {_CREDENTIALS_HINT}",
        ),
        (
            code == "InvalidObjectState",
            DeniedError,
            f"{uri} is archived: restore it to a class of storage that can be read at once",
        ),
        (
            code in _DENIED or status in (401, 403),
            DeniedError,
            f"access to {uri} was denied ({code}): {_CREDENTIALS_HINT}",
        ),
        (
            code == "NoSuchBucket",
            UserError,
            f"there is no bucket {bucket!r} at {endpoint}: check its name",
        ),
        (
            code in _WRONG_BUCKET,
            UserError,
            f"cannot use the bucket {bucket!r} ({code}): check its name and AWS_REGION",
        ),
        (
            status == 501,
            UserError,
            f"the store at {endpoint} does not know how to do this with {uri} ({code})",
        ),
        (
            code in _OVERLOADED or status >= 500 or status == 429,
            StoreUnavailableError,
            f"the store at {endpoint} cannot serve {uri} at present ({code or status}): try again later",
        ),
        (True, UserError, f"cannot use {uri}: {_first_line(error)}"),
    ]
    return next(kind(text) for holds, kind, text in meanings if holds)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

"""What stores raise, typed so that a caller can tell an outage from a refusal, and both from a bad object.

All but :class:`ObjectChangedError` are ``UserError`` (their message says what to do) and ``OSError`` (whoever
reads bytes need not know of stores).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from tubelet.config import UserError
from tubelet.redaction import RedactedError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ObjectChangedError(RedactedError, OSError):
    """The object's content is no longer the one its etag named."""

    error_code = "changed"
    """Of the row that reads it (see ``tubelet.video.source.reading``)."""


class StoreUnavailableError(RedactedError, ConnectionError, UserError):
    """The store cannot be reached, is overloaded, or broke an answer off: it may answer later.

    It says nothing about the object that was asked for.
    """


class CredentialsError(RedactedError, PermissionError, UserError):
    """No credentials, or such that the store does not take (wrong, expired): no object can be read."""

    error_code = "credentials"
    """Of the row that reads it, as of :class:`ObjectChangedError`."""


class DeniedError(RedactedError, PermissionError, UserError):
    """The credentials are good, but do not give access to this object or bucket."""


class DiskFullError(RedactedError, OSError, UserError):
    """No room is left on a local disk (or a quota or limit of file sizes is reached)."""


def is_transient(error: BaseException | None) -> bool:
    """Whether what failed with ``error`` may succeed later: a store was away, or broke off."""
    while error is not None:
        if isinstance(error, StoreUnavailableError):
            return True
        error = error.__cause__
    return False


def cannot_write(error: BaseException | None) -> bool:
    """Whether what failed with ``error`` was refused a place to write in; another place may take it."""
    while error is not None:
        unusable = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENOTDIR)
        if unusable or isinstance(error, PermissionError | NotADirectoryError):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def local_writes(path: Path) -> Iterator[None]:
    """Turn what the system says of writing ``path`` into a ``UserError`` where a person can mend it.

    Raises:
        DiskFullError: there is no room.
        UserError: no permission, a file system that is read only, a path through a file.
    """
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"no permission to write in {path.parent}: choose another place") from error
    except NotADirectoryError as error:
        raise UserError(f"cannot write {path}: a part of its path is a file, not a folder") from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFullError(
                f"no room to write {path} ({error.strerror}): free some on that disk, then run the same"
                " command again"
            ) from error
        if error.errno == errno.EROFS:
            raise UserError(
                f"cannot write in {path.parent}: it is read only, choose another place"
            ) from error
        raise

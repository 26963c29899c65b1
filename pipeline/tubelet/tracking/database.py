"""What is wrong with a tracking database, in words that help."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from tubelet.config import UserError

_OTHER_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+)")


def explained(error: Exception, uri: str) -> UserError | None:
    """What to say of ``error`` from opening the database ``uri``; None for what may pass (an outage)."""
    if isinstance(error, UserError):
        return error
    found = _OTHER_SCHEMA.search(str(error))
    if found is not None:
        return _of_other_version(found[1], uri)
    # A subclass (sqlite3.OperationalError) says that the database is locked or the disk full: that may pass.
    cause = getattr(error, "orig", None) or error
    if type(cause) is sqlite3.DatabaseError:
        return UserError(
            f"the MLflow database {shown(uri)} cannot be read ({cause}): restore it from a backup, or give"
            " another --tracking-uri"
        )
    return None


def shown(uri: str) -> str:
    """``uri`` without a password."""
    return re.sub(r"//[^/@]*@", "//…@", uri)


def _of_other_version(schema: str, uri: str) -> UserError:
    import mlflow

    known = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if any(known.glob(f"{schema}_*.py")):
        return UserError(
            f"the MLflow database {shown(uri)} is of an older MLflow: back it up, then run"
            f" `mlflow db upgrade {shown(uri)}`"
        )
    return UserError(
        f"the MLflow database {shown(uri)} is of a newer MLflow than the {mlflow.__version__} here:"
        " install that, or give another --tracking-uri"
    )

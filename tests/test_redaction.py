"""Secrets are cut from what people read; the rest stays readable."""

from __future__ import annotations

import logging
import pickle

import pytest
from tubelet.config import UserError
from tubelet.redaction import redacted, redacted_values
from tubelet.storage import ObjectChangedError
from tubelet.storage.errors import CredentialsError, DiskFullError, StoreUnavailableError
from tubelet.video import DecodeError
from tubelet_jobs.logs import log_to_stderr

CANARY = "canary-4f1d9c"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"cannot reach http://me:{CANARY}@host:5000/x", "cannot reach http://***@host:5000/x"),
        (f"postgresql+psycopg://u:{CANARY}@db/mlflow?x=1", "postgresql+psycopg://***@db/mlflow?x=1"),
        (f"https://b.s3/k?X-Amz-Signature={CANARY}&X-Amz-Date=1", "https://b.s3/k?X-Amz-Signature=***&X-Amz-Date=1"),
        (f"gs://b/k?a=1&sig={CANARY}", "gs://b/k?a=1&sig=***"),
        (f"AWS_SECRET_ACCESS_KEY={CANARY} tubelet", "AWS_SECRET_ACCESS_KEY=*** tubelet"),
        (f'{{"password": "{CANARY}"}}', '{"password": "***"}'),
        (f"Authorization: Bearer {CANARY}", "Authorization: Bearer ***"),
        ('{"/etc/passwd": "refused"}', '{"/etc/passwd": "refused"}'),
        ("s3://bucket/me@home/a=b.mp4", "s3://bucket/me@home/a=b.mp4"),
        ("the token: it is asked for", "the token: it is asked for"),
    ],
)  # fmt: skip
def test_secrets_are_cut_and_nothing_else(text: str, left: str) -> None:
    assert redacted(text) == left
    assert redacted_values({"a": [text, 1], "b": None}) == {"a": [left, 1], "b": None}


def test_secrets_of_the_environment_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", CANARY)
    assert redacted(f"the store said {CANARY}!") == "the store said ***!"


@pytest.mark.parametrize(
    "kind", [UserError, StoreUnavailableError, CredentialsError, DiskFullError, ObjectChangedError]
)
def test_errors_are_made_without_secrets(kind: type[Exception]) -> None:
    error = kind(f"reading http://me:{CANARY}@host failed")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "reading http://***@host failed"
    assert isinstance(error, OSError) or kind is UserError
    assert DecodeError("io_error", str(f"http://me:{CANARY}@host")).message == "http://***@host"


def test_logs_and_tracebacks_are_written_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord(
        "tubelet", logging.WARNING, "f", 1, "no picture of %s", (f"s3://a:{CANARY}@b",), None
    )
    try:
        raise RuntimeError(f"http://a:{CANARY}@b")
    except RuntimeError as error:
        record.exc_info = (RuntimeError, error, error.__traceback__)
    with log_to_stderr():
        logging.getLogger("tubelet").handle(record)
    text = capsys.readouterr().err
    assert "no picture of s3://***@b" in text
    assert "RuntimeError: http://***@b" in text
    assert CANARY not in text

"""Secrets cut from what people read: messages, logs, tags, parameters.

Where a URI carries a password or a signature, the rest of it stays readable. It is done where messages are
made (:class:`tubelet.config.UserError`, :class:`tubelet.video.DecodeError`), and where they leave.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CUT = "***"
# user:password@ before a host.
_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s?#\"'<>]*@", re.IGNORECASE)
# Parts of a query that let whoever has them in, as S3, GCS, Azure and CloudFront name them.
_SIGNED = re.compile(
    r"(?P<name>[?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|policy"
    r"|awsaccesskeyid|key-pair-id|googleaccessid|access_token|token|api_?key|password|secret)=)[^&#\s\"'<>]+",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?P<name>(?<![/\w])\w*(?:password|passwd|secret|secret_access_key|session_token|access_token|auth_token|api_key)"
    r"[\"']?\s?[=:]\s?[\"']?)(?!\s)[^\s\"'&,;]{4,}",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<name>\b(?:bearer|basic)\s)[\w.~+/=-]{8,}", re.IGNORECASE)
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "DATABRICKS_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)
_LEAST_SECRET = 8  # shorter ones are words, and guessed anyway


def redacted(text: str) -> str:
    """``text`` without passwords, signatures and the secrets of this process's environment."""
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _LEAST_SECRET and value in text:
            text = text.replace(value, _CUT)
    if "://" in text:
        text = _USER.sub(rf"\g<scheme>{_CUT}@", text)
    if "=" in text or ":" in text:
        text = _NAMED.sub(rf"\g<name>{_CUT}", _SIGNED.sub(rf"\g<name>{_CUT}", text))
    return _BEARER.sub(rf"\g<name>{_CUT}", text)


def redacted_values(value: Any) -> Any:
    """The same of all text in what is made of mappings and sequences."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {name: redacted_values(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [redacted_values(item) for item in value]
    return value


class RedactedError(Exception):
    """Of errors of several kinds: a part of their classes, before all others, that cuts secrets."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(item) if isinstance(item, str) else item for item in args))

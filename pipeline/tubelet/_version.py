"""The version of tubelet and of the tables and models it writes, in one place that everything may import."""

from __future__ import annotations

from collections.abc import Mapping

__version__ = "0.2.0"

# In the footers of Parquet files (manifest, predictions) and in the headers of safetensors. It grows where
# code that knows the former version only would misread what this one writes: not for a new column.
SCHEMA_KEY = "tubelet.schema_version"
SCHEMA_VERSION = 1  # also of files without one


class NewerSchemaError(ValueError):
    """A file that a newer tubelet wrote, in a way that this one cannot know."""


def check_schema_version(metadata: Mapping[bytes, bytes] | Mapping[str, str] | None, name: str) -> None:
    """Refuse what a newer tubelet wrote otherwise.

    Args:
        metadata: of a Parquet footer or a safetensors header.
        name: of the file, for the message.

    Raises:
        NewerSchemaError: its version is above :data:`SCHEMA_VERSION`, or none that this code can read.
    """
    found = {_text(key): value for key, value in (metadata or {}).items()}.get(SCHEMA_KEY, "1")
    version = _text(found)
    if not version.isdecimal() or int(version) > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{name} has schema version {version}, and tubelet {__version__} reads versions up to "
            f"{SCHEMA_VERSION}: use the tubelet that wrote it, or a newer one"
        )


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value

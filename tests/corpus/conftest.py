"""Each test of the corpus runs on a local folder and on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import S3Bucket


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of its own for one test, as a URI."""
    if request.param == "local":
        return str(tmp_path / "a place")
    bucket: S3Bucket = request.getfixturevalue("s3")
    return f"{bucket.uri}/a place"

"""What several test files share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.local_s3 import LocalS3

# Reference outputs and real videos, where they lie beside the checkout; tests add cases from them.
SHARED = Path(__file__).resolve().parents[2] / "shared"


@dataclass(frozen=True)
class S3Bucket:
    """A running S3 server and a prefix of its own for one test."""

    server: LocalS3
    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

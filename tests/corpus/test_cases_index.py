"""Inputs that fell short, each with its right answer: the rows of a MANIFEST.csv that are about the index.

``TUBELET_CASES`` names the folder (default: the one beside the checkout). ``right`` holds ``key=value``
tokens, `` | `` between alternatives, then ``; `` and words for people.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support import S3Bucket
from support.cases import CASES, case_params
from support.corpus import video_bytes
from tubelet.config import UserError
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import label_columns, read_manifest


def _alternatives(right: str) -> list[list[tuple[str, str]]]:
    return [
        [(name, value) for name, _, value in (token.partition("=") for token in _tokens(one))]
        for one in right.partition("; ")[0].split(" | ")
    ]


def _tokens(text: str) -> list[str]:
    """Words, where quotes keep spaces together and backslashes are only themselves."""
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.escape, words.commenters = True, "", ""
    return list(words)


# What has been taught since: a list without a header is read, and told of.
_ALSO_RIGHT = {"label-files/noheader.csv": "labelled=3 labels=0:2,1:1 says=SlowFast"}


class Outcome:
    """What an index of a case came to."""

    def __init__(self, row: dict[str, str], folder: Path, s3: S3Bucket | None) -> None:
        self.error: str | None = None
        self.summary: dict[str, Any] = {}
        self.videos: list[dict[str, Any]] = []
        self.columns: list[str] = []
        self.wanted_paths: int | None = None
        out = str(folder / "m")
        try:
            summary = index_corpus(IndexConfig(out=out, workers=1, **self._settings(row, folder, s3)))
        except UserError as error:
            self.error = str(error)
            assert len(self.error.splitlines()) <= 2
            return
        self.summary = asdict(summary)
        table = read_manifest(out)
        self.columns = label_columns(table)
        self.rows = table.to_pylist()
        self.videos = [r for r in self.rows if r["status"] == "ok"]

    def _settings(self, row: dict[str, str], folder: Path, s3: S3Bucket | None) -> dict[str, Any]:
        path, given = CASES / row["path"], re.search(r"args='--split (\S+)'", row["right"])
        settings: dict[str, Any] = {"split": given[1]} if given else {}
        if path.name == "names.json":
            return settings | {"src": _odd_names(path, folder / "odd")}
        if path.name == "keys.json":
            assert s3 is not None
            self.wanted_paths = _put_keys(path, s3)
            return settings | {"src": f"{s3.uri}/videos", "labels": "folders"}
        if path.is_dir():
            return settings | {"src": str(path), "labels": "folders"}
        if (path.parent / "videos").is_dir():
            return settings | {"src": str(path.parent / "videos"), "labels": str(path)}
        (folder / "one").mkdir()
        shutil.copyfile(path, folder / "one" / path.name)
        return settings | {"src": str(folder / "one")}

    def said(self) -> str:
        """All that a person is told."""
        return "\n".join([self.error or "", *self.summary.get("warnings", [])])

    def label(self, path: str) -> Any:
        """The label of one video."""
        return next(r["label"] for r in self.rows if r["path"] == path)

    def holds(self, name: str, value: str) -> bool:
        """Whether a token is so."""
        if name in ("args", "part"):
            return True
        if name == "says":
            return re.search(value, self.said()) is not None
        if name == "result":
            return (self.error is not None) == (value == "error")
        if self.error is not None:
            return False
        if name.startswith("label."):
            return bool(self.label(name[6:]) == value.replace("\\n", "\n"))
        if name == "labels":
            return Counter(r["label"] for r in self.rows if r["label"] is not None) == _counts(value)
        if name == "splits":
            return Counter(r["split"] for r in self.rows if r["split"]) == _counts(value)
        if name == "same":
            return len({self.label(path) for path in value.split(",")}) == 1
        if name == "status":
            return {r["status"] for r in self.rows} <= set(value.split(","))
        if name == "frames_over":
            return all((r["frames"] or 0) > int(value) for r in self.rows)
        if name == "absent_columns":
            return not set(value.split(",")) & set(self.columns)
        if name == "paths":
            return len({r["path"] for r in self.rows}) == int(value)
        return bool(self.summary[name] == int(value))


def _counts(text: str) -> dict[str, int]:
    return {name: int(count) for name, _, count in (part.partition(":") for part in text.split(","))}


def _odd_names(names: Path, folder: Path) -> str:
    """Copies of a clip under the names; ``\\xNN`` in them is that raw byte."""
    folder.mkdir()
    for name in json.loads(names.read_text("utf-8")):
        raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), name.encode())
        Path(os.fsdecode(os.path.join(os.fsencode(folder), raw))).write_bytes(video_bytes())
    return str(folder)


def _put_keys(keys: Path, s3: S3Bucket) -> int:
    """A clip under each key that the store takes, and folder markers; how many keys there are then."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3")
    for key in [*json.loads(keys.read_text("utf-8")), "videos/", "videos/run/"]:
        body = b"" if key.endswith("/") else video_bytes()
        try:
            client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/{key}", Body=body)
        except (BotoCoreError, ClientError):
            continue
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=f"{s3.prefix}/videos/")
    found = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return sum(not key.endswith("/") for key in found)


@pytest.mark.parametrize(
    "row", case_params(lambda row: row["job"] == "index" or "part=index" in row["right"])
)
def test_case(row: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    s3 = request.getfixturevalue("s3") if row["path"].endswith("keys.json") else None
    outcome = Outcome(row, tmp_path, s3)
    if outcome.wanted_paths is not None:
        paths = [r["path"] for r in outcome.rows]
        assert len(paths) == len(set(paths)) == outcome.wanted_paths
        assert "" not in {r["label"] for r in outcome.rows}
    wrong = [
        [f"{name}={value}" for name, value in tokens if not outcome.holds(name, value)]
        for tokens in _alternatives(row["right"]) + _alternatives(_ALSO_RIGHT.get(row["path"], row["right"]))
    ]
    assert not all(wrong), f"{wrong}; {outcome.said()!r}; {outcome.summary}"

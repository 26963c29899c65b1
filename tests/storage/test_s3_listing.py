"""Listing by folders and ranges gives each key once and in order, whatever the keys are."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
from tubelet.storage import StoreUnavailableError, range_listing, with_retries
from tubelet.storage.s3_listing import list_keys


class Keys:
    """What a store answers: ``list_objects_v2`` over made keys, also one that ignores ``StartAfter``."""

    def __init__(self, keys: list[str], *, start_after: bool = True) -> None:
        self._keys, self._start_after = sorted(keys), start_after
        self.requests = 0

    def list_objects_v2(self, **request: Any) -> dict[str, Any]:
        """Contents and common prefixes, up to MaxKeys of both."""
        self.requests += 1
        after = request.get("ContinuationToken") or (
            request.get("StartAfter", "") if self._start_after else ""
        )
        prefix, most = request["Prefix"], request.get("MaxKeys", 1000)
        contents: list[dict[str, Any]] = []
        folders: list[dict[str, Any]] = []
        answer: dict[str, Any] = {"Contents": contents, "CommonPrefixes": folders, "IsTruncated": False}
        last = ""
        for key in self._keys:
            if not key.startswith(prefix) or key <= after or (last.endswith("/") and key.startswith(last)):
                continue
            if len(contents) + len(folders) == most:
                token = last + "\U0010ffff" if last.endswith("/") else last
                return answer | {"IsTruncated": True, "NextContinuationToken": token}
            last = key
            if request.get("Delimiter") and "/" in key[len(prefix) :]:
                last = prefix + key[len(prefix) :].partition("/")[0] + "/"
                folders.append({"Prefix": last})
            else:
                contents.append({"Key": key})
        return answer

    def get_paginator(self, name: str) -> Keys:
        """Itself."""
        return self

    def paginate(self, **request: Any) -> Any:
        """All at once."""
        yield {"Contents": [{"Key": key} for key in self._keys if key.startswith(request["Prefix"])]}


SETS = {
    "few": ["v/a", "v/b"],
    "none": [],
    "exactly a page": [f"v/{i}" for i in range(5)],
    "numbered": [f"v/img{i:06d}.mp4" for i in range(500)],
    "folders": [f"v/{c}/{i}.mp4" for c in "abcdef" for i in range(40)],
    "one wide folder": ["v/a/x", *(f"v/b/{i}.mp4" for i in range(300)), "v/c/x"],
    "odd": [
        f"v/{c}{d}"
        for c, d in itertools.product(["", "~", "é", "日", " ", "_", "-", "\U0001f600"], map(str, range(30)))
    ],
}


@pytest.mark.parametrize("name", SETS)
def test_each_key_once_and_in_order(name: str) -> None:
    keys = [*SETS[name], "u/other", "w/other"]
    for start_after in (True, False):
        client: Any = Keys(keys, start_after=start_after)
        found = [item["Key"] for item in list_keys(client, "b", "v/", page_keys=5)]
        assert found == sorted(SETS[name])


def test_an_error_reaches_the_reader() -> None:
    class Broken(Keys):
        def list_objects_v2(self, **request: Any) -> dict[str, Any]:
            if request.get("StartAfter", "") > "v/img000200":
                raise OSError("gone")
            return super().list_objects_v2(**request)

    client: Any = Broken(SETS["numbered"])
    with pytest.raises(OSError, match="gone"):
        list(list_keys(client, "b", "v/", page_keys=5))


def test_a_page_that_was_lost_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(Keys):
        def list_objects_v2(self, **request: Any) -> dict[str, Any]:
            answer = super().list_objects_v2(**request)
            if self.requests % 4 == 0:
                raise StoreUnavailableError("SlowDown")
            return answer

    monkeypatch.setattr(range_listing, "with_retries", partial(with_retries, first_pause_s=0.001))
    client: Any = Losing(SETS["numbered"])
    found = [item["Key"] for item in list_keys(client, "b", "v/", page_keys=5)]
    assert found == sorted(SETS["numbered"])


def test_a_store_lists_all(s3: Any) -> None:
    import boto3

    client = boto3.client("s3")
    keys = [f"{s3.prefix}/w/{folder}/{i:03d}" for folder in ("a", "b b", "c+%") for i in range(25)]
    for key in keys:
        client.put_object(Bucket=s3.bucket, Key=key, Body=b"")
    found = [item["Key"] for item in list_keys(client, s3.bucket, f"{s3.prefix}/w/", page_keys=7)]
    assert found == sorted(keys)

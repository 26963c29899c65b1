"""The requests with which S3 lists the keys below a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tubelet.storage.range_listing import Item, Page, list_in_ranges

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def list_keys(
    client: S3Client,
    bucket: str,
    prefix: str,
    page_keys: int = 1000,
    translated: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Any]:
    """The objects below ``prefix`` as ``list_objects_v2`` tells them, in the order of their keys.

    Args:
        client: of the store.
        bucket: its name.
        prefix: what all keys begin with.
        page_keys: objects per request.
        translated: turns errors of the store into ours, from which it is seen what may succeed later.
    """
    lister = _S3Lister(client, {"Bucket": bucket, "Prefix": prefix}, page_keys, translated)
    return (item for _, item in list_in_ranges(lister, page_keys))


class _S3Lister:
    def __init__(
        self,
        client: S3Client,
        request: dict[str, Any],
        page_keys: int,
        translated: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._client, self._request, self._keys, self._translated = client, request, page_keys, translated

    def page(self, after: str | None, most: int) -> tuple[Page, bool]:
        request = self._request | {"MaxKeys": most} | ({} if after is None else {"StartAfter": after})
        with self._translated():
            answer = self._client.list_objects_v2(**request)
        return [(item["Key"], item) for item in answer.get("Contents", ())], bool(answer.get("IsTruncated"))

    def folders(self, token: Any) -> tuple[list[str], Any]:
        request = self._request | {"MaxKeys": self._keys, "Delimiter": "/"}
        request |= {"ContinuationToken": token} if token else {}
        with self._translated():
            answer = self._client.list_objects_v2(**request)
        return [one["Prefix"] for one in answer.get("CommonPrefixes", ())], answer.get(
            "NextContinuationToken"
        )

    def one_after_the_other(self) -> Iterator[Item]:
        for page in self._client.get_paginator("list_objects_v2").paginate(**self._request):
            for item in page.get("Contents", ()):
                yield item["Key"], item

"""List a bucket with several requests under way: by its folders, and a wide folder by ranges of its keys.

A store lists a thousand keys per request, each request beginning where the one before ended. Ranges of keys
can be listed side by side: ``(low, high]`` begins with ``StartAfter=low`` and ends with the first key above
``high``, so the ranges cover every key exactly once, whatever the names are.
"""

from __future__ import annotations

import string
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from queue import Full, Queue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Page = list[Any]

_WORKERS = 16
# Pages that may wait of one range while an earlier range is being read: bounds the memory.
_WAITING_PAGES = 8
# A range that goes on after so many pages is cut up.
_PAGES_BEFORE_CUT = 4
# Requests that are spent on looking for folders among the keys of a prefix.
_FOLDER_PAGES = 3
_CLASSES = (string.digits, string.ascii_uppercase, string.ascii_lowercase)
_POLL_S = 0.2


def list_keys(client: S3Client, bucket: str, prefix: str, page_keys: int = 1000) -> Iterator[Any]:
    """The objects below ``prefix`` as ``list_objects_v2`` tells them, in the order of their keys."""
    listing = _Listing(client, bucket, prefix, page_keys)
    first = listing.page(None)
    yield from first
    if len(first) < page_keys and not listing.cut_short:
        return
    last = str(first[-1]["Key"]) if first else ""
    if not last or not listing.honours_start_after(last):
        yield from _one_after_the_other(client, bucket, prefix, first)
        return
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="list") as pool:
        listing.start(pool, str(first[0]["Key"]), last)
        try:
            yield from listing.in_order()
        finally:
            listing.stop.set()


class _Range:
    """Keys above ``low`` up to ``high`` (None: to the end), listed by one worker."""

    def __init__(self, low: str, high: str | None) -> None:
        self.low, self.high = low, high
        self.pages: Queue[Page | BaseException | None] = Queue(_WAITING_PAGES)
        self.children: list[_Range] = []
        self._claim = threading.Lock()

    def claimed(self) -> bool:
        """Whether the caller is the first to ask, and lists it."""
        return self._claim.acquire(blocking=False)


class _Listing:
    def __init__(self, client: S3Client, bucket: str, prefix: str, page_keys: int) -> None:
        self._client, self._keys = client, page_keys
        self._request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": page_keys}
        self._prefix = prefix
        self._ranges: list[_Range] = []
        self._pool: ThreadPoolExecutor | None = None
        self.cut_short = False
        self.stop = threading.Event()

    def page(self, after: str | None) -> Page:
        """Up to a page of objects whose keys come after ``after``."""
        request = self._request if after is None else self._request | {"StartAfter": after}
        answer = self._client.list_objects_v2(**request)
        self.cut_short = bool(answer.get("IsTruncated"))
        return list(answer.get("Contents", ()))

    def honours_start_after(self, last: str) -> bool:
        """Some stores that speak S3 ignore where a listing is to begin."""
        request = self._request | {"StartAfter": last, "MaxKeys": 1}
        return all(item["Key"] > last for item in self._client.list_objects_v2(**request).get("Contents", ()))

    def start(self, pool: ThreadPoolExecutor, first: str, last: str) -> None:
        """Cut what comes after the first page, of keys from ``first`` to ``last``, into ranges."""
        self._pool = pool
        cuts = [name for name in self._folders() if name > last] or _cuts(first, last, None)
        self._ranges = _between(last, cuts, None)
        for one in self._ranges:
            pool.submit(self._work, one)

    def in_order(self) -> Iterator[Any]:
        """All objects, range after range."""
        waiting = list(reversed(self._ranges))
        while waiting:
            one = waiting.pop()
            if one.claimed():  # every worker may wait for room, and this is what makes room
                for page in self._list(one):
                    yield from page
            else:
                while (page_or_error := one.pages.get()) is not None:
                    if isinstance(page_or_error, BaseException):
                        raise page_or_error
                    yield from page_or_error
            waiting += reversed(one.children)

    def _work(self, one: _Range) -> None:
        if self.stop.is_set() or not one.claimed():
            return
        try:
            for page in self._list(one):
                self._put(one, page)
        except BaseException as error:  # the reader raises it
            self._put(one, error)
        else:
            self._put(one, None)

    def _put(self, one: _Range, item: Page | BaseException | None) -> None:
        while not self.stop.is_set():
            try:
                one.pages.put(item, timeout=_POLL_S)
                return
            except Full:
                continue

    def _list(self, one: _Range) -> Iterator[Page]:
        """The pages of a range; a long one hands its rest on to others."""
        after, count = one.low, 0
        while not self.stop.is_set():
            answer = self._client.list_objects_v2(**self._request, StartAfter=after)
            items = list(answer.get("Contents", ()))
            inside = [item for item in items if one.high is None or item["Key"] <= one.high]
            if inside:
                yield inside
            if len(inside) < len(items) or not answer.get("IsTruncated") or not items:
                return
            after, count = str(items[-1]["Key"]), count + 1
            if count == _PAGES_BEFORE_CUT:
                cuts = _cuts(str(items[0]["Key"]), after, one.high)
                one.children = _between(after, cuts, one.high)
                for child in one.children:
                    assert self._pool is not None
                    if not self.stop.is_set():
                        self._pool.submit(self._work, child)
                return

    def _folders(self) -> list[str]:
        """Folders right below the prefix, as far as a few requests tell; none if those do not tell all."""
        found: list[str] = []
        token: dict[str, str] = {}
        for _ in range(_FOLDER_PAGES):
            answer = self._client.list_objects_v2(**self._request, Delimiter="/", **token)  # type: ignore[arg-type]
            found += [str(one["Prefix"]) for one in answer.get("CommonPrefixes", ())]
            if not answer.get("IsTruncated"):
                return found
            token = {"ContinuationToken": answer["NextContinuationToken"]}
        return []


def _cuts(first: str, last: str, high: str | None) -> list[str]:
    """Keys after ``last`` that may part what follows, given a page of keys from ``first`` to ``last``.

    They go by the kind of the first letter in which the keys of the page differ: numbers are cut by digits.
    What others there are lie in the last range, which is cut up again where it is long.
    """
    common = _common(first, last)
    if common == last:
        common = last[:-1]
    kind = next((letters for letters in _CLASSES if last[len(common)] in letters), "".join(_CLASSES))
    return [cut for letter in kind if (cut := common + letter) > last and (high is None or cut < high)]


def _common(one: str, two: str) -> str:
    """What both begin with."""
    same = 0
    while same < min(len(one), len(two)) and one[same] == two[same]:
        same += 1
    return one[:same]


def _between(low: str, cuts: list[str], high: str | None) -> list[_Range]:
    edges: list[str | None] = [low, *cuts, high]
    return [_Range(str(a), b) for a, b in pairwise(edges)]


def _one_after_the_other(client: S3Client, bucket: str, prefix: str, seen: Page) -> Iterator[Any]:
    known = len(seen)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            if known:
                known -= 1
                continue
            yield item

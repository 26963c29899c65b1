"""List a bucket with several requests under way: by its folders, and a wide folder by ranges of its keys.

A store lists a thousand keys per request, each request beginning where the one before ended. Ranges of keys
can be listed side by side: ``(low, high]`` begins with the first key above ``low`` and ends with the first
key above ``high``, so the ranges cover every key exactly once, whatever the names are.
"""

from __future__ import annotations

import string
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from queue import Full, Queue
from typing import Any, Protocol

from tubelet.storage.retries import with_retries

Item = tuple[str, Any]
"""A key, and what the store says of the object."""
Page = list[Item]

_WORKERS = 16
# Pages that may wait of one range while an earlier range is being read: bounds the memory.
_WAITING_PAGES = 8
# A range that goes on after so many pages is cut up.
_PAGES_BEFORE_CUT = 4
# Requests that are spent on looking for folders among the keys of a prefix.
_FOLDER_PAGES = 3
# How often a page is asked for that a store lost: it was away, overloaded, or broke its answer off.
_ATTEMPTS = 6
_CLASSES = (string.digits, string.ascii_uppercase, string.ascii_lowercase)
_POLL_S = 0.2


class Lister(Protocol):
    """The requests that a store answers, for the keys below one prefix, in the order of the keys."""

    def page(self, after: str | None, most: int) -> tuple[Page, bool]:
        """Up to ``most`` objects whose keys come after ``after``, and whether there are more."""
        ...

    def folders(self, token: Any) -> tuple[list[str], Any]:
        """Folders right below the prefix, the first page or that of ``token``; and the token of the next."""
        ...

    def one_after_the_other(self) -> Iterator[Item]:
        """All objects, by requests each of which begins where the one before ended."""
        ...


def list_in_ranges(lister: Lister, page_keys: int = 1000) -> Iterator[Item]:
    """The objects in the order of their keys.

    Raises:
        Exception: a request failed for good; one that may succeed later is tried again, with pauses that grow
            and are spread at random.
    """
    listing = _Listing(lister, page_keys)
    first, more = listing.page(None)
    yield from first
    if not more:
        return
    last = first[-1][0] if first else ""
    if not last or not listing.honours_start_after(last):
        seen = len(first)
        for number, item in enumerate(lister.one_after_the_other()):
            if number >= seen:
                yield item
        return
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="list") as pool:
        listing.start(pool, first[0][0], last)
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
    def __init__(self, lister: Lister, page_keys: int) -> None:
        self._lister, self._keys = lister, page_keys
        self._ranges: list[_Range] = []
        self._pool: ThreadPoolExecutor | None = None
        self.stop = threading.Event()

    def page(self, after: str | None, most: int | None = None) -> tuple[Page, bool]:
        """As :meth:`Lister.page`, with patience."""
        return with_retries(lambda: self._lister.page(after, most or self._keys), attempts=_ATTEMPTS)

    def honours_start_after(self, last: str) -> bool:
        """Some stores that speak S3 ignore where a listing is to begin."""
        return all(key > last for key, _ in self.page(last, 1)[0])

    def start(self, pool: ThreadPoolExecutor, first: str, last: str) -> None:
        """Cut what comes after the first page, of keys from ``first`` to ``last``, into ranges."""
        self._pool = pool
        cuts = [name for name in self._folders() if name > last] or _cuts(first, last, None)
        self._ranges = _between(last, cuts, None)
        for one in self._ranges:
            pool.submit(self._work, one)

    def in_order(self) -> Iterator[Item]:
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
            items, more = self.page(after)
            inside = [item for item in items if one.high is None or item[0] <= one.high]
            if inside:
                yield inside
            if len(inside) < len(items) or not more or not items:
                return
            after, count = items[-1][0], count + 1
            if count == _PAGES_BEFORE_CUT:
                cuts = _cuts(items[0][0], after, one.high)
                one.children = _between(after, cuts, one.high)
                for child in one.children:
                    assert self._pool is not None
                    if not self.stop.is_set():
                        self._pool.submit(self._work, child)
                return

    def _folders(self) -> list[str]:
        """Folders right below the prefix, as far as a few requests tell; none if those do not tell all."""
        found: list[str] = []
        token: Any = None
        for _ in range(_FOLDER_PAGES):
            some, token = with_retries(partial(self._lister.folders, token), attempts=_ATTEMPTS)
            found += some
            if not token:
                return found
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

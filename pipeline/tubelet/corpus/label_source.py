"""What a source of labels is, and what is known of one video."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from tubelet.storage import ObjectInfo

_EXAMPLES = 3

Value = str | list[str] | None


@dataclass(frozen=True)
class Segment:
    """A part of a video that has labels of its own.

    Attributes:
        start_s, end_s: where it is, in seconds (with ``in_frames``: counted in frames); None: up to that end.
        values: its labels by label column.
        corrected_at: when a person corrected them, in UTC.
    """

    start_s: float | None
    end_s: float | None
    values: dict[str, Value]
    in_frames: bool = False
    corrected_at: datetime | None = None

    def is_at(self, start_s: float | None, end_s: float | None) -> bool:
        """Whether it is the part between these, to the millisecond."""
        return _same(self.start_s, start_s) and _same(self.end_s, end_s)


@dataclass(frozen=True)
class LabelRow:
    """What is known of one video.

    Attributes:
        values: labels of the whole by label column.
        segments: parts that have labels of their own.
        group: the person or the scene.
        split: the cell of the column that splits go by.
        named: a row of a label file names the object, so people take it for a video.
        corrected_at: when a person corrected the labels of the whole, in UTC.
    """

    values: dict[str, Value] = field(default_factory=dict)
    group: str | None = None
    split: str | None = None
    named: bool = field(default=False, compare=False)
    segments: tuple[Segment, ...] = ()
    corrected_at: datetime | None = None


NO_LABELS = LabelRow()


class Examples:
    """Counts names and keeps the first three, to be shown in a message."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, name: str) -> None:
        """One more."""
        self.count += 1
        if len(self._first) < _EXAMPLES:
            self._first.append(name)

    def __str__(self) -> str:
        return ", ".join(repr(name) for name in self._first) or "none"


class ClassNames:
    """The distinct labels of each head, and what looks odd about them."""

    def __init__(self) -> None:
        self._by_head: dict[str, set[str]] = {}

    def add(self, head: str, names: Iterable[str]) -> None:
        """Labels that a video has in ``head``."""
        self._by_head.setdefault(head, set()).update(names)

    def __len__(self) -> int:
        return sum(map(len, self._by_head.values()))

    def warnings(self) -> list[str]:
        """Heads with one class, and classes that differ in case or spaces only."""
        found = []
        for head, names in sorted(self._by_head.items()):
            if len(names) == 1 and len(self._by_head) == 1:
                name = next(iter(names))
                found.append(f"all labels are of one class, {name!r}: there is nothing to train on yet")
            alike: dict[str, list[str]] = {}
            for name in sorted(names):
                alike.setdefault(" ".join(name.casefold().split()), []).append(name)
            pairs = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
            if pairs:
                told = "; ".join(pairs[:_EXAMPLES])
                found.append(f"{head}: classes that differ only in case or spaces: {told}")
        return found


class Labels(Protocol):
    """A source of labels."""

    heads: dict[str, bool]
    """Label columns, and whether each is multi-label."""
    split_column: str | None
    """The column that :attr:`LabelRow.split` was taken from, if there is one."""
    files: frozenset[str]
    """The URIs of what was read, which are no videos of the corpus."""

    def lookup(self, info: ObjectInfo) -> LabelRow:
        """The labels of an object (``NO_LABELS`` where there are none); counts what matched."""
        ...

    def check(self) -> list[str]:
        """Warnings, after every object was looked up.

        Raises:
            UserError: nothing matched.
        """
        ...


class NoLabels:
    """A corpus without labels."""

    def __init__(self) -> None:
        self.heads: dict[str, bool] = {"label": False}
        self.split_column: str | None = None
        self.files: frozenset[str] = frozenset()

    def lookup(self, info: ObjectInfo) -> LabelRow:
        """See :meth:`Labels.lookup`."""
        del info
        return NO_LABELS

    def check(self) -> list[str]:
        """See :meth:`Labels.check`."""
        return []


def composed(label: str) -> str:
    """One form for what looks the same: macOS writes accents apart from their letters."""
    return unicodedata.normalize("NFC", label)


def _same(one: float | None, two: float | None) -> bool:
    return one is two is None or (one is not None and two is not None and abs(one - two) < 1e-3)

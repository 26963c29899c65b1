"""Which split a video belongs to: a function of its key, its group, or a column of the label file.

Nothing is drawn: a video keeps its split when others come and go, and when the bucket is copied.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Protocol

from tubelet.config import UserError
from tubelet.corpus.labels import Examples, LabelRow, Labels
from tubelet.corpus.split_names import normalise_split

TOGETHER = "together:"
"""Before the rest of a rule: duplicates get one split."""
DEFAULT_FRACTIONS = "train=0.8,val=0.1,test=0.1"
# Clips of one recording in UCF101 are called v_Archery_g08_c01.avi, …_g08_c02.avi and so on.
_UCF_CLIP = re.compile(r"(v_[A-Za-z]+_g\d\d)_c\d\d\.")
UCF_GROUPS = r"group:(v_\w+_g\d+)_c"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Assigned:
    """A video's split (None: none) and its group (None: it stands alone)."""

    split: str | None
    group: str | None


class SplitRule(Protocol):
    """Assigns splits."""

    spec: str

    def assign(self, key: str, path: str, row: LabelRow) -> Assigned:
        """The split and the group of one video."""
        ...

    def check(self, counts: dict[str, int]) -> list[str]:
        """Warnings, given the number of videos by split, after all were assigned.

        Raises:
            UserError: the rule fits no video.
        """
        ...


def unit_interval(text: str) -> float:
    """A hash of ``text``, uniform in [0, 1)."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"tubelet-split").digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


class HashSplit:
    """Fractions by a hash of the video's group where the label file gives one, else of its key."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.fractions = _parse_fractions(spec)
        self._sources: dict[str, str] = {}
        self._torn: set[str] = set()

    def assign(self, key: str, path: str, row: LabelRow) -> Assigned:
        """See :meth:`SplitRule.assign`."""
        split = self.place(key if row.group is None else row.group)
        source = _UCF_CLIP.search(path)
        if source is not None and self._sources.setdefault(source[1], split) != split:
            self._torn.add(source[1])
        return Assigned(split, row.group)

    def place(self, text: str) -> str:
        """The split that the hash of ``text`` falls into."""
        position, end = unit_interval(text), 0.0
        for name, fraction in self.fractions.items():
            end += fraction
            if position < end:
                return name
        return [name for name, fraction in self.fractions.items() if fraction > 0][-1]

    def check(self, counts: dict[str, int]) -> list[str]:
        """See :meth:`SplitRule.check`."""
        warnings = []
        if self._torn:
            warnings.append(
                f"clips of one recording of UCF101 fall into several splits ({len(self._torn)} "
                f"recordings, for example {min(self._torn)!r}), so that tests look better than they are: "
                f"give the official lists with --labels trainlist01.txt, or --split '{UCF_GROUPS}'"
            )
        empty = [name for name, fraction in self.fractions.items() if fraction > 0 and not counts.get(name)]
        if empty:
            warnings.append(f"no video fell into split {', '.join(empty)}: there are too few for {self.spec}")
        return warnings


class ColumnSplit:
    """The split is the value of a column of the label file; an empty cell is no split."""

    def __init__(self, column: str, labels: Labels) -> None:
        self.spec = f"column:{column}"
        self.column = column
        if labels.split_column != column:
            known = ", ".join(getattr(labels, "columns", [])) or "no columns, as there is no label file"
            raise UserError(
                f"--split column:{column}: the labels have {known}\nname one of them, or give --labels FILE"
            )

    def assign(self, key: str, path: str, row: LabelRow) -> Assigned:
        """See :meth:`SplitRule.assign`."""
        del key, path
        return Assigned(None if row.split is None else normalise_split(row.split), row.group)

    def check(self, counts: dict[str, int]) -> list[str]:
        """See :meth:`SplitRule.check`."""
        if not counts:
            raise UserError(f"--split column:{self.column}: no object under SRC has a value in that column")
        return []


class KeptSplit:
    """On an update whose labels do not say the splits: they stay as they are, and what is new has none."""

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def assign(self, key: str, path: str, row: LabelRow) -> Assigned:
        """See :meth:`SplitRule.assign`."""
        del key, path
        return Assigned(None, row.group)

    def check(self, counts: dict[str, int]) -> list[str]:
        """See :meth:`SplitRule.check`."""
        del counts
        return []


class GroupSplit:
    """Fractions by a hash of the first group of a regex on the path: the person or the scene."""

    def __init__(self, pattern: str) -> None:
        self.spec = f"group:{pattern}"
        self._hash = HashSplit(DEFAULT_FRACTIONS)
        self._groups: set[str] = set()
        self._unmatched = Examples()
        try:
            self._regex = re.compile(pattern)
        except re.error as error:
            raise UserError(f"--split {self.spec}: not a regular expression: {error}") from error
        if not self._regex.groups:
            raise UserError(
                f"--split {self.spec}: put the part that names the person or scene in (parentheses)"
            )

    def assign(self, key: str, path: str, row: LabelRow) -> Assigned:
        """See :meth:`SplitRule.assign`."""
        del row
        found = self._regex.search(path)
        group = found.group(1) if found else None
        if group is None:
            self._unmatched.add(path)
            return Assigned(self._hash.place(key), None)
        self._groups.add(group)
        return Assigned(self._hash.place(group), group)

    def check(self, counts: dict[str, int]) -> list[str]:
        """See :meth:`SplitRule.check`."""
        if not self._groups:
            raise UserError(f"--split {self.spec}: the regex matches no path, for example {self._unmatched}")
        warnings = self._hash.check(counts)
        if self._unmatched.count:
            missed = f"{self._unmatched.count} paths, for example {self._unmatched}"
            warnings.append(f"--split {self.spec} does not match {missed}: each counts as its own group")
        return warnings


def split_column_of(spec: str | None) -> str:
    """The column of the label file that holds splits under ``spec`` (``split`` unless it names another)."""
    return spec.removeprefix("column:") if spec and spec.startswith("column:") else "split"


def parse_split(spec: str | None, labels: Labels, before: str | None = None) -> SplitRule:
    """The rule that ``spec`` describes; without one, the label file's ``split`` column, or else fractions.

    Args:
        spec: what the user gives.
        labels: where labels come from.
        before: on an update without ``--split``, the rule that the manifest's splits came from.

    Raises:
        UserError: ``spec`` is none of ``NAME=FRACTION,…``, ``column:NAME`` and ``group:REGEX``.
    """
    if before is not None and before.startswith("column:"):
        column = split_column_of(before)
        return ColumnSplit(column, labels) if labels.split_column == column else KeptSplit(before)
    if spec is None:
        return ColumnSplit("split", labels) if labels.split_column else HashSplit(DEFAULT_FRACTIONS)
    if spec.startswith("column:"):
        return ColumnSplit(spec.removeprefix("column:"), labels)
    if spec.startswith("group:"):
        return GroupSplit(spec.removeprefix("group:"))
    return HashSplit(spec)


def _parse_fractions(spec: str) -> dict[str, float]:
    fractions: dict[str, float] = {}
    for part in spec.split(","):
        written, sep, text = (piece.strip() for piece in part.partition("="))
        name = normalise_split(written)
        if not sep or not _NAME.fullmatch(name) or name in fractions:
            raise _bad_spec(
                spec, f"{part.strip()!r} is not NAME=FRACTION" if name not in fractions else f"{name} twice"
            )
        try:
            fractions[name] = float(text)
        except ValueError as error:
            raise _bad_spec(spec, f"{text!r} is no number") from error
        if not 0 <= fractions[name] <= 1:
            raise _bad_spec(spec, f"{name} is not between 0 and 1")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise _bad_spec(spec, f"the fractions add up to {sum(fractions.values()):g}, not 1")
    return fractions


def _bad_spec(spec: str, reason: str) -> UserError:
    return UserError(f"--split {spec!r}: {reason}\nwrite {DEFAULT_FRACTIONS}, column:NAME or group:REGEX")

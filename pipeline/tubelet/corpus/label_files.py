"""Labels from one label file, joined with the objects of a corpus by path, URI, key or bare name."""

from __future__ import annotations

import posixpath
import re
import unicodedata

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.formats.base import Annotation
from tubelet.corpus.formats.registry import read_labels
from tubelet.corpus.label_source import NO_LABELS, ClassNames, Examples, LabelRow, Segment
from tubelet.corpus.label_table import VIDEO_NAME
from tubelet.corpus.manifest import key_of
from tubelet.storage import ObjectInfo, StorageOptions

_ESCAPED_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


class FileLabels:
    """Labels from a file of any layout that is known.

    Attributes:
        uri: the file.
        found: what it says.
        columns: those of a table.
        heads, split_column, files: see :class:`Labels`.
    """

    def __init__(self, uri: str, src: str, options: StorageOptions, split_column: str = "split") -> None:
        """Read the label file at ``uri`` for the objects below ``src``.

        Raises:
            UserError: the file is missing or malformed, lacks a column, has no labels, or contradicts itself.
        """
        self._src = src
        file, self.found = read_labels(uri, options, split_column)
        self.uri = file.uri
        self.files = frozenset({file.uri, *file.read_too})
        self.columns = self.found.columns
        self.heads = {"label": False} | self.found.many
        self.split_column = self.found.split_column if self.found.splits else None
        self._rows: list[LabelRow] = []
        self._names: list[str] = []
        self._segments: dict[int, list[Segment]] = {}
        self._matched = bytearray()
        self._by_path: dict[str, int] = {}
        self._by_uri: dict[str, int] = {}
        self._by_key: dict[str, int] = {}
        self._by_plain: dict[str, list[int]] = {}
        self._by_stem: dict[str, list[int]] = {}
        self._trimmed: dict[str, tuple[int, LabelRow] | None] = {}
        self._known: dict[str, LabelRow] = {}
        self._two_splits = Examples()
        if not self.found.corrections:
            for annotation in self.found.annotations:
                self._add(annotation)
        self._index_names()
        self._below = _folder_below(storage.parent(self.uri), src)
        self._above = _folder_below(src, storage.parent(self.uri))
        self._unlabelled = Examples()
        self._shared: dict[int, str] = {}
        self._ambiguous = Examples()
        self._objects = 0
        self._classes = ClassNames()

    def lookup(self, info: ObjectInfo) -> LabelRow:
        """The row that names an object.

        Raises:
            UserError: two rows do, and disagree.
        """
        self._objects += 1
        row = self._of(info)
        if row is None:
            self._unlabelled.add(info.path)
            return NO_LABELS
        for values in (row.values, *(segment.values for segment in row.segments)):
            for head, value in values.items():
                if value:
                    self._classes.add(head, [value] if isinstance(value, str) else value)
        return row

    def check(self) -> list[str]:
        """See :meth:`Labels.check`."""
        matched = sum(self._matched)
        unmatched = Examples()
        for name, hit in zip(self._names, self._matched, strict=True):
            if not hit:
                unmatched.add(name)
        sides = f"it names {unmatched}; without a row are {self._unlabelled}"
        if not matched:
            of = f"0 of {len(self._rows)} rows match the {self._objects} objects"
            raise UserError(f"{self.uri}: {of} under {self._src}\n{sides}")
        if not self._classes:
            raise UserError(f"{self.uri}: no object under {self._src} has a label; fill the column `label`")
        warnings = [*self._classes.warnings(), *self.found.notes]
        if len(self.heads) > 1:
            heads = ", ".join(name for name in self.heads if name != "label")
            warnings.append(f"{self.uri}: labels of heads of their own, beside `label`: {heads}")
        if unmatched.count:
            warnings.append(f"{self.uri}: {matched} of {len(self._rows)} rows match an object; {sides}")
        if self._ambiguous.count:
            warnings.append(
                f"{self.uri}: {self._ambiguous.count} objects share the bare name of a row with another, and "
                f"have its labels too: {self._ambiguous}"
            )
        if self._two_splits.count:
            warnings.append(
                f"{self.uri}: {self._two_splits.count} videos have parts in two splits; all parts of each go "
                f"to the first: {self._two_splits}"
            )
        return warnings

    def _add(self, one: Annotation) -> None:
        uri = storage.normalise_uri(one.uri) if one.uri else None
        names = [(self._by_path, one.path), (self._by_uri, uri), (self._by_key, one.key)]
        given = [(index, name) for index, name in names if name]
        whole = one.start_s is None and one.end_s is None
        row = self._shared_row(LabelRow(one.values if whole else {}, one.group, one.split, named=True))
        earlier = {index[name] for index, name in given if name in index}
        for number in earlier if whole else ():
            before = self._rows[number]
            if not before.values:
                self._rows[number] = row
            elif before != row:
                raise UserError(
                    f"{self.uri}, {one.place}: {one.path or uri or one.key!r} stands there twice and "
                    f"differently: {_show(before)} and {_show(row)}\nkeep one of the rows"
                )
        number = min(earlier, default=len(self._rows))
        if not earlier:
            for index, name in given:
                index[name] = number
            self._rows.append(row)
            self._names.append(str(one.path or uri or one.key))
            self._matched.append(0)
        elif (one.split or None) != self._rows[number].split and one.split:
            self._two_splits.add(self._names[number])
        if not whole:
            segment = Segment(one.start_s, one.end_s, one.values, one.in_frames)
            self._segments.setdefault(number, []).append(segment)
        if one.trimmed is not None:
            clip = self._shared_row(LabelRow(one.values, one.group, one.split, named=True))
            other = self._trimmed.get(one.trimmed, (number, clip))
            self._trimmed[one.trimmed] = (number, clip) if other == (number, clip) else None

    def _shared_row(self, row: LabelRow) -> LabelRow:
        """One object for all rows that are equal: a million videos have a few hundred classes."""
        return self._known.setdefault(repr((row.values, row.group, row.split)), row)

    def _index_names(self) -> None:
        for name, number in self._by_path.items():
            self._by_plain.setdefault(_plain(_latin1(name.strip())), []).append(number)
            if self.found.bare or not VIDEO_NAME.fullmatch(name):
                self._by_stem.setdefault(_stem(name), []).append(number)

    def _of(self, info: ObjectInfo) -> LabelRow | None:
        """What the file says of an object; None: nothing."""
        stem = _stem(info.path)
        found = self._find(info)
        if not found and self._trimmed and (clip := self._trimmed.get(stem)) is not None:
            self._matched[clip[0]] = 1
            return clip[1]
        found = found or self._find_stem(info.path, stem)
        if not found:
            return None
        row = self._rows[found[0]]
        for other in found[1:]:
            if self._rows[other] != row:
                raise UserError(
                    f"{self.uri}: two rows name {info.path!r} and disagree: {_show(row)} and "
                    f"{_show(self._rows[other])}\nkeep one of them"
                )
        segments: list[Segment] = []
        for number in found:
            self._matched[number] = 1
            segments += self._segments.get(number, ())
        return (
            LabelRow(row.values, row.group, row.split, row.named, tuple(sorted(segments, key=_begin)))
            if segments
            else row
        )

    def _find(self, info: ObjectInfo) -> list[int]:
        exact = [self._by_path.get(info.path), self._by_uri.get(info.uri), self._by_path.get(info.uri)]
        if self._by_key:
            exact.append(self._by_key.get(key_of(info.path)))
        if self._below is not None:
            exact.append(self._by_path.get(self._below + info.path))
        if self._above is not None and info.path.startswith(self._above):
            exact.append(self._by_path.get(info.path[len(self._above) :]))
        found = [number for number in dict.fromkeys(exact) if number is not None]
        if found:
            return found
        # A row whose cell has spaces at its ends names the object with the spaces first.
        return [
            number
            for number in self._by_plain.get(_plain(_latin1(info.path)), [])
            if not (self._matched[number] and self._names[number] != self._names[number].strip())
        ]

    def _find_stem(self, path: str, stem: str) -> list[int]:
        """By the bare name; the row with more of the folders than others is meant."""
        found = self._by_stem.get(stem, [])
        if not found and self.found.bare and stem.startswith("v_"):  # as ActivityNet's files are called
            found = self._by_stem.get(stem[2:], [])
        ends = [number for number in found if _is_end(self._names[number], path)]
        if not self.found.bare or any("/" in self._names[number] for number in ends):
            found = ends
        for number in found:
            other = self._shared.setdefault(number, path)
            if other != path:
                self._ambiguous.add(path)
        return found


def _is_end(name: str, path: str) -> bool:
    """Whether ``path``, extensions aside, ends with ``name``, whole folders long."""
    end, whole = (_plain(text).rpartition("/")[0] for text in (name, path))
    return not end or f"/{whole}".endswith(f"/{end}")


def _begin(segment: Segment) -> tuple[float, float]:
    return segment.start_s or 0.0, float("inf") if segment.end_s is None else segment.end_s


def _stem(path: str) -> str:
    """The last part, without the extension of a video."""
    name = _plain(_latin1(path.strip())).rpartition("/")[2]
    return name.rpartition(".")[0] if VIDEO_NAME.fullmatch(name) else name


def _latin1(path: str) -> str:
    """Bytes of file names that are no UTF-8, read as Latin-1, as those who wrote them did."""
    return _ESCAPED_BYTE.sub(lambda found: chr(int(found[1], 16)), path) if "\\udc" in path else path


def _plain(path: str) -> str:
    text = unicodedata.normalize("NFC", path).replace("\\", "/").lstrip("/")
    return posixpath.normpath(text)


def _folder_below(base: str, folder: str) -> str | None:
    """``x/`` where ``folder`` is ``base/x``."""
    prefix = base.rstrip("/") + "/"
    return folder[len(prefix) :] + "/" if folder.startswith(prefix) and folder != prefix else None


def _show(row: LabelRow) -> str:
    known = {**row.values, "split": row.split, "group": row.group}
    return ", ".join(f"{name}={value!r}" for name, value in known.items() if value is not None) or "nothing"

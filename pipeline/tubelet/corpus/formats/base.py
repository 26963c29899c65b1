"""What a reader of a label layout is given, and what it gives back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.label_source import Value
from tubelet.corpus.label_table import LabelTable, decoded_text
from tubelet.corpus.split_names import is_split_word, normalise_split
from tubelet.storage import StorageOptions

_WORD = re.compile(r"[a-z]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one place in a label file says of one video, or of one part of it.

    Attributes:
        place: where it stands, for messages.
        path: the video as the file names it: a path, or a bare name.
        uri, key: other ways to name it.
        values: labels by label column.
        trimmed: the bare name of the part where it was cut out as a file of its own.
        start_s, end_s: the part; None: up to that end of the video.
        in_frames: these count frames, not seconds.
        split: the split that the set was published with.
        group: the person or the scene.
        at: when a person corrected this (see :attr:`Found.corrections`).
    """

    place: str
    path: str | None
    values: dict[str, Value]
    trimmed: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    in_frames: bool = False
    split: str | None = None
    group: str | None = None
    uri: str | None = None
    key: str | None = None
    at: datetime | None = None


@dataclass
class Found:
    """What a label file says.

    Attributes:
        annotations: its content.
        many: the label columns, and whether each is multi-label.
        splits: it says which split a video belongs to.
        bare: it names videos without their folder and extension, which files may have or not.
        corrections: people's corrections of predictions, which win over all else.
        split_column: the column that the splits stand in.
        columns: those of a table.
        notes: what the user should know.
    """

    annotations: list[Annotation]
    many: dict[str, bool]
    splits: bool = False
    bare: bool = True
    corrections: bool = False
    split_column: str = "split"
    columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class LabelFile:
    """A label file, what lies beside it, and what of all that was read.

    Attributes:
        uri: the file.
        name: its last part.
        read_too: the URIs of what was read beside it.
    """

    def __init__(self, uri: str, data: bytes, options: StorageOptions) -> None:
        self.uri, self.data, self._options = uri, data, options
        self.name = storage.name_of(uri)
        self.read_too: list[str] = []
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The content as UTF-8 text.

        Raises:
            UserError: it is none.
        """
        if self._text is None:
            self._text = decoded_text(self.uri, self.data)
        return self._text

    def lines(self) -> Iterator[tuple[str, str]]:
        """The lines that are not empty, and where each stands."""
        for number, line in enumerate(self.text.splitlines(), 1):
            if line.strip():
                yield f"line {number}", line.strip()

    def beside(self, pattern: str) -> list[str]:
        """Names in the same folder that match a regular expression as a whole, sorted."""
        names = storage.list_names(storage.parent(self.uri), self._options)
        return sorted(name for name in names if re.fullmatch(pattern, name))

    def sibling(self, name: str) -> LabelFile:
        """The file ``name`` in the same folder.

        Raises:
            UserError: it cannot be read.
        """
        uri = storage.join(storage.parent(self.uri), name)
        try:
            found = LabelFile(uri, storage.read_bytes(uri, self._options), self._options)
        except OSError as error:
            raise UserError(f"cannot read {uri}, which belongs to {self.name}: {error}") from error
        self.read_too.append(uri)
        return found

    def split(self) -> str | None:
        """The split that the name says: ``Charades_v1_train.csv`` is for training."""
        for word in _WORD.findall(self.name.rpartition(".")[0] or self.name):
            if is_split_word(word):
                return normalise_split(word)
        return None


@dataclass(frozen=True)
class TableFormat:
    """A layout that is a table with a header.

    Attributes:
        name: whose it is.
        columns: those that tell it from others.
        read: reads it.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[LabelFile, LabelTable], Found]


@dataclass(frozen=True)
class FileFormat:
    """A layout that is no table with a header.

    Attributes:
        name: whose it is.
        looks: how it looks, for messages.
        matches: whether a file has it, by its name and the first of its content.
        read: reads it.
    """

    name: str
    looks: str
    matches: Callable[[LabelFile], bool]
    read: Callable[[LabelFile], Found]


def seconds(text: object, uri: str, place: str) -> float | None:
    """Seconds, or ``HH:MM:SS.sss``; None for an empty cell.

    Raises:
        UserError: it is neither.
    """
    written = "" if text is None else str(text).strip()
    if not written or written.casefold() in ("nan", "none", "null"):
        return None
    try:
        total = 0.0
        for part in written.split(":"):
            total = total * 60 + float(part)
    except ValueError as error:
        raise UserError(f"{uri}, {place}: {written!r} is no time; write seconds, or HH:MM:SS") from error
    return total
